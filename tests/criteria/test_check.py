"""The conformance test passes for every shipped criterion, and names the one rule that a broken one breaks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import lightning_taylor.criteria as criteria
from lightning_taylor.criteria import (
    OBD,
    ActivationMean,
    ActivationStd,
    APoZ,
    Combined,
    Criterion,
    MutualInformation,
    Random,
    Scorer,
    Taylor,
    TaylorBatch,
    WeightMagnitude,
)
from lightning_taylor.criteria.check import RULES, CriterionError
from lightning_taylor.extend import check_criterion
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role

SHIPPED: tuple[Criterion, ...] = (
    ActivationMean(), ActivationStd(), APoZ(), WeightMagnitude(), Random(), Random(seed=3),
    MutualInformation(), MutualInformation(bins=3, examples=24, target=1), OBD(), OBD(probes=2, seed=3),
    Taylor(), Taylor(positions="mean"), Taylor(absolute="batch"), Taylor(positions="mean", absolute="window"),
    TaylorBatch(), TaylorBatch(momentum=0.9), Combined(Taylor(), ActivationMean()),
    Combined(TaylorBatch(momentum=0.5), OBD(), share=0.3, normalization="l1"),
)  # fmt: skip


@pytest.mark.parametrize("criterion", SHIPPED, ids=repr)
def test_every_shipped_criterion_keeps_every_rule(criterion: Criterion) -> None:
    check_criterion(criterion)


def test_the_table_has_every_shipped_criterion() -> None:
    exported = {getattr(criteria, name) for name in criteria.__all__}
    shipped = {e for e in exported if isinstance(e, type) and issubclass(e, Criterion)} - {Criterion}
    assert {type(criterion) for criterion in SHIPPED} == shipped


class Inputs(Criterion):
    """Mean size of what a channel's consumers receive, by hooks that a user would write; and it keeps every rule."""

    skips_evaluation: ClassVar[bool] = True
    skips_paused: ClassVar[bool] = True
    skips_copies: ClassVar[bool] = True

    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        return InputsScorer(model, graph, type(self))


class InputsScorer(Scorer):
    def __init__(self, model: nn.Module, graph: ChannelGraph, kind: type[Inputs]) -> None:
        self.graph, self.kind, self.paused = graph, kind, False
        self.names = {s.tensor: s.tensor.rpartition(".")[0] for g in graph.groups.values() for s in g.of(Role.CONSUMER)}
        self.totals = {tensor: torch.zeros(model.get_submodule(n).weight.shape[1]) for tensor, n in self.names.items()}  # type: ignore[union-attr,index]
        self.batches, self.fresh = 0, {}
        self.handles = [
            model.get_submodule(name).register_forward_pre_hook(self.hook(model.get_submodule(name), tensor))
            for tensor, name in self.names.items()
        ]

    def hook(self, watched: nn.Module, tensor: str) -> Callable[[nn.Module, Any], None]:
        def see(module: nn.Module, args: Any) -> None:
            x = args[0].detach()
            passive = self.kind.skips_evaluation and not torch.is_grad_enabled()
            if passive or (self.kind.skips_copies and module is not watched):
                return
            if not (self.kind.skips_paused and self.paused):
                self.fresh[tensor] = self.fresh.get(tensor, 0) + x.abs().transpose(0, 1).flatten(1).mean(1)

        return see

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def drop_batch(self) -> None:
        pass  # as ``ActivationMean``: it takes the mean of the passes

    def end_batch(self, *, examples: int, grad_scale: float | Tensor = 1.0) -> None:
        fresh, self.fresh = self.fresh, {}
        if fresh and all(bool(t.isfinite().all()) for t in fresh.values()):
            self.batches += 1
            self.totals = {tensor: self.totals[tensor] + t for tensor, t in fresh.items()}

    def scores(self) -> dict[str, Tensor]:
        if not self.batches:
            return {}
        groups = self.graph.groups.items()
        means = {n: [self.totals[s.tensor][s.index].mean(1) for s in g.of(Role.CONSUMER)] for n, g in groups}
        # The share of the whole: evaluated twice, a batch counts no more.
        return {name: torch.stack(each).sum(0) / torch.stack(each).sum() for name, each in means.items()}

    def state(self) -> dict[str, Tensor]:
        return {"batches": torch.tensor(self.batches), **{k: t.clone() for k, t in self.totals.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if any(state[name].shape != total.shape for name, total in self.totals.items()):
            raise ValueError("other widths")
        self.batches, self.totals = int(state["batches"]), {name: state[name].clone() for name in self.totals}

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def test_a_users_criterion_with_hooks_keeps_every_rule() -> None:
    check_criterion(Inputs())


class Spoiled(Criterion):
    """A shipped criterion, whose scorer a subclass spoils."""

    inner: ClassVar[Criterion] = Taylor()

    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        scorer = self.inner.scorer(model, graph, event=event)
        self.spoil(scorer, model)
        return scorer

    def spoil(self, scorer: Any, model: nn.Module) -> None:
        pass


class Untyped(Spoiled):
    def __init__(self, power=1):  # type: ignore[no-untyped-def]
        self.power = power


class KeptElsewhere(Spoiled):
    def __init__(self, power: int = 1) -> None:
        self.exponent = power


class UnprintedSetting(Spoiled):
    def __init__(self, power: int = 1) -> None:
        self.power = power

    def __repr__(self) -> str:
        return "UnprintedSetting()"


class Key:
    def __repr__(self) -> str:
        return "<key>"


class Unevaluated(Spoiled):
    def __init__(self, key: object = None) -> None:
        self.key = key or Key()


class WrongType(Spoiled):
    def __init__(self, power: int = 1) -> None:
        self.power = power


class Uncopied(Spoiled):
    def __reduce__(self) -> Any:
        raise TypeError("a lock")


class WrongDefault(Spoiled):
    @property
    def default_normalization(self) -> Any:
        return "L2"


class ChangesScores(Spoiled):
    """Passes the scores on through a function of the subclass."""

    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain = scorer.scores
        scorer.scores = lambda: self.change(plain())

    def change(self, scores: dict[str, Tensor]) -> Any:
        raise NotImplementedError


class TwoDimensions(ChangesScores):
    def change(self, scores: dict[str, Tensor]) -> Any:
        return {name: score_C[None] for name, score_C in scores.items()}


class Double(ChangesScores):
    def change(self, scores: dict[str, Tensor]) -> Any:
        return {name: score_C.double() for name, score_C in scores.items()}


class Infinite(ChangesScores):
    def change(self, scores: dict[str, Tensor]) -> Any:
        return {name: score_C / 0 for name, score_C in scores.items()}


class Incomplete(ChangesScores):
    def change(self, scores: dict[str, Tensor]) -> Any:
        return {"down": scores["down"]}


class Crashes(ChangesScores):
    def change(self, scores: dict[str, Tensor]) -> Any:
        raise ZeroDivisionError("no examples")


class Counts(ChangesScores):
    calls: ClassVar[Any] = itertools.count()

    def change(self, scores: dict[str, Tensor]) -> Any:
        drift = next(self.calls)
        return {name: score_C + drift for name, score_C in scores.items()}


class NeedsABatch(ChangesScores):
    def change(self, scores: dict[str, Tensor]) -> Any:
        return {"down": scores["down"], **scores}


class Remembers(Spoiled):
    def __init__(self, scored: int = 0) -> None:
        self.scored = scored

    def spoil(self, scorer: Any, model: nn.Module) -> None:
        self.scored += 1


class GrowsGradients(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        after = scorer.after_backward

        def grow() -> None:
            after()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= 1.5

        scorer.after_backward = grow


class Registers(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        close = scorer.close
        model.register_buffer("gates", torch.ones(3))

        def leave() -> None:
            close()
            model._buffers.pop("gates", None)

        scorer.close = leave


class Draws(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        torch.rand(1)


class LeavesAHook(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        model.register_forward_hook(lambda *_: None)


class LeavesAParameterHook(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        next(model.parameters()).register_hook(lambda grad: None)


class SharesItsScores(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain, kept = scorer.scores, {}

        def scores() -> dict[str, Tensor]:
            for name, score_C in plain().items():
                kept.setdefault((name, scorer.metric.examples.sum().item()), score_C)
            return {name: kept[name, scorer.metric.examples.sum().item()] for name in plain()}

        scorer.scores = scores


class LastBatch(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain = scorer.end_batch

        def end_batch(**kwargs: Any) -> None:
            if any(tap._calls or tap._kept for tap in scorer.hooks.by_layer.values()):
                scorer.metric.reset()
            plain(**kwargs)

        scorer.end_batch = end_batch


class TakesAnything(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        sums = scorer.metric

        def update(score_C: Tensor, seen_C: Tensor, weight: float) -> None:
            sums.total = sums.total + torch.where(seen_C, score_C, 0) * weight
            sums.examples = sums.examples + seen_C * weight

        sums.update = update


class IgnoresTheScale(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain = scorer.end_batch
        scorer.end_batch = lambda examples, grad_scale=1.0: plain(examples=examples)


class CountsPenalties(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        scorer.before_backward = lambda: None


class CountsClosures(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        scorer.drop_batch = lambda: None


class CountsEvaluation(Inputs):
    skips_evaluation = False


class NeverPaused(Inputs):
    skips_paused = False


class StaysPaused(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        scorer.resume = lambda: None


class CountsCopies(Inputs):
    skips_copies = False


class Sorts(ChangesScores):
    def change(self, scores: dict[str, Tensor]) -> Any:
        return {name: score_C.sort().values for name, score_C in scores.items()}


class Pickles(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain = scorer.state
        scorer.state = lambda: {**plain(), "batches": 3}


class Forgets(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        scorer.state = lambda: {}
        scorer.load_state = lambda state: None


class SharesItsState(Spoiled):
    inner = Taylor()

    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain, shared = scorer.state, {}

        def state() -> dict[str, Tensor]:
            for name, value in plain().items():
                shared.setdefault(name, value.clone()).copy_(value)
            return shared

        def end_batch(**kwargs: Any) -> None:
            end(**kwargs)
            state()

        end, scorer.end_batch, scorer.state = scorer.end_batch, end_batch, state


class TakesOtherWidths(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain = scorer.load_state

        def load_state(state: Mapping[str, Tensor]) -> None:
            plain({name: t[: scorer.metric.total.shape[-1]] for name, t in state.items()})

        scorer.load_state = load_state


class JoinsTheFirst(Spoiled):
    def spoil(self, scorer: Any, model: nn.Module) -> None:
        def merge_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return dict(states[0])

        scorer.merge_states = merge_states


class RemembersOthers(Spoiled):
    inner = TaylorBatch(momentum=0.5)

    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain = scorer.carry_over

        def carry_over(before: Scorer, remove: Mapping[str, Tensor]) -> None:
            plain(before, {name: torch.arange(len(index_R)) for name, index_R in remove.items()})

        scorer.carry_over = carry_over


class ForgetsItsMemory(Spoiled):
    inner = TaylorBatch(momentum=0.5)

    def spoil(self, scorer: Any, model: nn.Module) -> None:
        plain = scorer.state
        scorer.state = lambda: {name: t for name, t in plain().items() if not name.startswith("history")}


BROKEN: tuple[tuple[str, Criterion, str], ...] = (
    ("the arguments of __init__", Untyped(), "'power' of __init__ has no type"),
    ("the arguments of __init__", KeptElsewhere(), "set self.power"),
    ("repr", UnprintedSetting(power=2), "power is int 1 in place of int 2"),
    ("repr", Unevaluated(), "does not evaluate"),
    ("built from YAML", WrongType(0.5), "annotate __init__"),  # type: ignore[arg-type]
    ("copies of the criterion", Uncopied(), "a lock"),
    ("defaults", WrongDefault(), "'L2'"),
    ("one finite score for each channel", TwoDimensions(), "shape (1, 6)"),
    ("one finite score for each channel", Double(), "torch.float64"),
    ("one finite score for each channel", Infinite(), "inf"),
    ("one finite score for each channel", Incomplete(), "['stem.0'] got gradients"),
    ("one finite score for each channel", Crashes(), "ZeroDivisionError: no examples"),
    ("the same scores for the same batches", Counts(), "seeded with the event"),
    ("no scores without a batch", NeedsABatch(), "KeyError: 'down'"),
    ("settings stay as they are", Remembers(), "scored"),
    ("training goes on as without it", GrowsGradients(), "gradients differ"),
    ("training goes on as without it", Registers(), "['gates']"),
    ("no global random numbers", Draws(), "generator of torch"),
    ("nothing left on the model", LeavesAHook(), "_forward_hooks"),
    ("nothing left on the model", LeavesAParameterHook(), "hooks of stem.0.weight"),
    ("scores can be read at any time", SharesItsScores(), "[7, 7"),
    ("every batch counts", LastBatch(), "without the first"),
    ("batches that are not finite", TakesAnything(), "ChannelSums"),
    ("the scale of the loss", IgnoresTheScale(), "1024"),
    ("other backward passes", CountsPenalties(), "before_backward"),
    ("batches that are evaluated twice", CountsClosures(), "drop_batch"),
    ("passes without gradients", CountsEvaluation(), "no_grad"),
    ("pause and resume", NeverPaused(), "paused pass"),
    ("pause and resume", StaysPaused(), "paused pass"),
    ("copies of the model", CountsCopies(), "copy of the model"),
    ("the order of channels", Sorts(), "index"),
    ("a state of plain tensors", Pickles(), "'batches': int"),
    ("resume from a state", Forgets(), "into state()"),
    ("resume from a state", SharesItsState(), "clone"),
    ("a state of other widths", TakesOtherWidths(), "ValueError"),
    ("states of several scorers", JoinsTheFirst(), "override merge_states"),
    ("carry over an event", RemembersOthers(), "not in remove"),
    ("carry over an event", ForgetsItsMemory(), "memory into state()"),
)


@pytest.mark.parametrize(("rule", "criterion", "says"), BROKEN, ids=[type(c).__name__ for _, c, _ in BROKEN])
def test_the_one_rule_that_is_broken_is_named(rule: str, criterion: Criterion, says: str) -> None:
    if rule == "built from YAML":
        pytest.importorskip("jsonargparse")
    with pytest.raises(CriterionError) as raised:
        check_criterion(criterion)
    assert list(raised.value.broken) == [rule], raised.value
    assert says in str(raised.value)


def test_every_rule_has_a_criterion_that_breaks_it() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_all_broken_rules_are_listed_at_once() -> None:
    class Bad(CountsPenalties):
        def spoil(self, scorer: Any, model: nn.Module) -> None:
            super().spoil(scorer, model)
            scorer.drop_batch = lambda: None

    Bad.__qualname__ = "Bad"
    globals()["Bad"] = Bad
    with pytest.raises(CriterionError, match="Bad breaks 2 of the rules") as raised:
        check_criterion(Bad())
    assert set(raised.value.broken) == {"other backward passes", "batches that are evaluated twice"}


def test_what_is_no_criterion_is_refused() -> None:
    with pytest.raises(TypeError, match="such as Taylor"):
        check_criterion(Taylor)  # type: ignore[arg-type]
