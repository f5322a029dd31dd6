"""Only some optimizer steps are scored: which ones, what the others cost, and that nothing else changes."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from typing_extensions import override

from fit.boring import Boring, loader, trainer
from fit.harness import assert_close, fit, frozen_rate, lands, pruning, scores_of
from lightning_taylor import OBD, ActivationMean, Criterion, Gradual, Guard, Iterative, OneShot, Taylor, TaylorBatch
from lightning_taylor.criteria import Combined, Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan import ScoreBatches
from lightning_taylor.scores.statistics_hook import _Look

EVENTS = Gradual(every_n_steps=5, start_step=5, end_step=20)  # at 10, 15 and 20
LAST_TWO = {9, 10, 14, 15, 19, 20}
SPREAD_TWO = {5, 10, 13, 15, 18, 20}


class Now(L.Callback):
    """Knows which optimizer step the present batch belongs to, counted from 1."""

    step = 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.step = trainer.global_step + 1


class Noted(Criterion):
    """Notes in which steps its scorer is called, and how; the first events may find no score."""

    def __init__(self, now: Now, waits: int = 0) -> None:
        self.now, self.waits = now, waits
        self.calls: dict[str, list[int]] = defaultdict(list)

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        return _NotedScorer(self, graph)


class _NotedScorer(Scorer):
    def __init__(self, of: Noted, graph: ChannelGraph) -> None:
        self.of, self.graph = of, graph

    def note(self, call: str) -> None:
        self.of.calls[call].append(self.of.now.step)

    @override
    def on_batch(self, batch: Any) -> None:
        self.note("on_batch")

    @override
    def on_loss(self, loss: Tensor) -> None:
        self.note("on_loss")

    @override
    def before_backward(self) -> None:
        self.note("before_backward")

    @override
    def after_backward(self) -> None:
        self.note("after_backward")

    @override
    def before_step(self, *_: Any, **__: Any) -> None:
        self.note("before_step")

    @override
    def end_batch(self, **_: Any) -> None:
        self.note("end_batch")

    @override
    def sync(self) -> None:
        self.note("sync")

    @override
    def scores(self) -> dict[str, Tensor]:
        self.of.waits -= 1
        if self.of.waits >= 0:
            return {}
        return {name: torch.arange(1.0, group.size + 1) for name, group in self.graph.groups.items()}


def noted(
    folder: Path, *loaders: Any, waits: int = 0, module: Boring | None = None, **kwargs: Any
) -> dict[str, list[int]]:
    """Call -> the steps in which it was made, in a fit of 24 steps."""
    now = Now()
    criterion = Noted(now, waits)
    options = {"schedule": EVENTS, "criterion": criterion, **kwargs.pop("options")}
    fit(
        module or Boring(zoo.OptionA()),
        pruning(**options),
        folder,
        *loaders,
        others=[now],
        first=True,
        max_steps=24,
        max_epochs=-1,
        **kwargs,
    )
    return criterion.calls


@pytest.mark.parametrize(
    ("score_batches", "steps"),
    [
        (2, LAST_TWO),
        (ScoreBatches(2), SPREAD_TWO),
        (1, {10, 15, 20}),
        (100, set(range(1, 21))),
        ("all", set(range(1, 21))),
    ],
)
def test_a_scorer_hears_of_the_chosen_steps_and_of_no_other(
    score_batches: Any, steps: set[int], tmp_path: Path
) -> None:
    calls = noted(tmp_path, options={"score_batches": score_batches})
    # The first batch goes to the trace: the scorer begins in the middle of it.
    assert {call: set(found) - {1} for call, found in calls.items()} == dict.fromkeys(calls, steps - {1})
    assert len(calls) == 7


def test_the_accumulated_batches_of_a_step_are_scored_together(tmp_path: Path) -> None:
    calls = noted(tmp_path, options={"score_batches": 2}, accumulate_grad_batches=4)
    batches = sorted(4 * list(LAST_TWO))
    assert [calls["on_batch"], calls["on_loss"], calls["end_batch"]] == [batches] * 3
    assert calls["before_step"] == sorted(LAST_TWO)


def test_scoring_goes_on_while_an_event_has_to_wait(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the event of step 10 has to wait"):
        calls = noted(tmp_path, waits=3, options={"score_batches": 1})
    assert calls["end_batch"] == [10, 11, 12, 13, 15, 20]


class Worse(Boring):
    """Says after each epoch, of eight steps, that it got worse."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", 1 - self.global_step / 10)


@pytest.mark.parametrize("action", ["stop", "rollback"])
@pytest.mark.parametrize(("score_batches", "steps"), [(1, [10, 15]), ("all", list(range(2, 17)))])
def test_nothing_is_scored_once_a_guard_ended_the_pruning(
    score_batches: Any, steps: list[int], action: Any, tmp_path: Path
) -> None:
    options = {"guard": Guard("val_acc", max_drop=0.1, action=action), "score_batches": score_batches}
    with pytest.warns(UserWarning, match="at step 16: val_acc is"), pytest.warns(UserWarning, match="was not reached"):
        calls = noted(tmp_path, loader(), loader(n=8), module=Worse(zoo.OptionA()), options=options)
    assert [step for step in calls["before_step"] if step > 1] == steps


class Nodes(Boring):
    """Counts the nodes of the loss's graph in every step."""

    def __init__(self) -> None:
        super().__init__(zoo.Residual(), "SGD", lr=0.0)
        self.counts: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        found, todo = set(), [loss.grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in found:
                found.add(node)
                todo += [following for following, _ in node.next_functions]
        self.counts.append(len(found))
        return loss


@pytest.mark.parametrize("criterion", [Taylor(), OBD(), Combined(TaylorBatch(), Taylor())], ids=repr)
def test_an_unscored_step_builds_the_graph_of_a_fit_without_a_pruner(criterion: Criterion, tmp_path: Path) -> None:
    plain, pruned = Nodes(), Nodes()
    trainer([], max_epochs=1, default_root_dir=tmp_path).fit(plain, loader())
    fit(pruned, pruning(schedule=OneShot(8), criterion=criterion, score_batches=2), tmp_path, max_epochs=1)
    # The trace makes the first step once more, on a copy.
    assert pruned.counts[-8:-2] == plain.counts[:6]
    assert min(pruned.counts[-2:]) > plain.counts[0]


def test_an_unscored_step_computes_no_statistics(tmp_path: Path) -> None:
    now, steps = Now(), set()
    look = _Look._look

    def looking(hook: Any, *args: Any) -> None:
        steps.add(now.step)
        look(hook, *args)

    with mock.patch.object(_Look, "_look", looking):
        pruner = pruning(schedule=EVENTS, criterion=ActivationMean(), score_batches=ScoreBatches(2), target=0.7)
        fit(Boring(zoo.Residual()), pruner, tmp_path, others=[now], first=True)
    last = json.loads((tmp_path / "pruning.json").read_text())["events"][-1]["step"]
    assert pruner.reached
    assert steps == {step for step in SPREAD_TWO if step <= last}


@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch(), OBD()], ids=repr)
def test_the_scores_are_those_of_the_chosen_steps_alone(criterion: Criterion, tmp_path: Path) -> None:
    """The weights stand still; the first batch of a fit goes to the trace."""
    batches = list(loader())
    alone: Any = DataLoader([batches[0], *batches[6:8]], batch_size=None)
    if isinstance(criterion, TaylorBatch):  # it has no hooks, and sees the first step as well
        alone = DataLoader(batches[6:8], batch_size=None)
    found = scores_of(frozen_rate, tmp_path, criterion=criterion, step=8, options={"score_batches": 2}, max_epochs=1)
    step = len(alone)
    expected = scores_of(frozen_rate, tmp_path, alone, criterion=criterion, step=step, max_steps=step)
    if isinstance(criterion, OBD):  # its probes differ, and with them the estimate
        assert set(found) == set(expected)
    else:
        assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("score_batches", [10, ScoreBatches(10), "all"])
@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()], ids=repr)
def test_where_no_more_steps_lie_between_events_the_fit_is_the_same_bit_for_bit(
    criterion: Criterion, score_batches: Any, tmp_path: Path
) -> None:
    kept = []
    for asked in ("all", score_batches):
        torch.manual_seed(0)
        module = Boring(zoo.Residual())
        pruner = pruning(schedule=EVENTS, criterion=criterion, score_batches=asked)
        fit(module, pruner, tmp_path)
        assert pruner.reached
        kept.append(module.state_dict())
    assert all(torch.equal(kept[0][name], value) for name, value in kept[1].items())


class Checkpointed(Boring):
    """Runs its forward pass a second time in the backward pass."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out: Any = checkpoint(self.net, batch[0], use_reentrant=False)
        return F.cross_entropy(out, batch[1])


def test_gradient_checkpointing_finds_the_hooks_as_they_were(tmp_path: Path) -> None:
    options = {"score_batches": ScoreBatches(3)}
    expected = scores_of(frozen_rate, tmp_path, step=8, options=options)
    found = scores_of(lambda: Checkpointed(zoo.OptionA(), "SGD", lr=0.0), tmp_path, step=8, options=options)
    assert_close(found, expected)


@pytest.mark.parametrize("criterion", [None, TaylorBatch(), Combined(Taylor(), ActivationMean())], ids=repr)
def test_a_fit_that_scores_one_step_before_each_event_lands(criterion: Criterion | None, tmp_path: Path) -> None:
    lands(Boring(zoo.Residual()), tmp_path, pruner=pruning(schedule=EVENTS, criterion=criterion, score_batches=1))


@pytest.mark.filterwarnings("ignore:the target:UserWarning")
def test_a_fit_that_is_resumed_with_another_choice_says_so(tmp_path: Path) -> None:
    def run(score_batches: Any, steps: int, resumed: Path | None = None) -> L.Trainer:
        pruner = pruning(schedule=Iterative(3, 1), score_batches=score_batches)
        made = trainer([pruner], max_steps=steps, max_epochs=-1, default_root_dir=tmp_path)
        made.fit(Boring(zoo.Residual()), loader(), ckpt_path=resumed, weights_only=True)
        return made

    file = tmp_path / "half.ckpt"
    run(2, 8).save_checkpoint(file)
    with pytest.warns(UserWarning, match=r"score_batches=ScoreBatches\(n=1, .*, which was ScoreBatches\(n=2, "):
        run(1, 16, file)


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "last", ScoreBatches])
def test_a_wrong_choice_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="score_batches takes a number of steps before each event, ScoreBatches"):
        pruning(score_batches=wrong)
