"""Rules about what outlives a checkpoint, an event and a rank."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.conformance.bench import Batch, Bench, difference, score, train
from lightning_taylor.criteria.conformance.rules import Case
from lightning_taylor.criteria.conformance.scores import form_of

__all__ = [
    "carry_over",
    "merging",
    "other_widths",
    "plain_state",
    "resuming",
]


def plain_state(case: Case) -> str | None:
    """Check that the state is plain tensors, which a checkpoint takes and gives back without trust."""
    state = _state(case, [case.first])
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"state() has {name!r}: {type(value).__name__}; return names -> tensors"
        if value.device.type != "cpu" or value.requires_grad:
            return f"state()[{name!r}] is on {value.device}, requires_grad={value.requires_grad}; detach and copy it"
    try:
        _saved(state)
    except Exception as error:
        return f"state() does not load with weights_only=True ({type(error).__name__}); return plain tensors"
    return None


def resuming(case: Case) -> str | None:
    """Check that a scorer goes on from a state as if it had not stopped."""
    model = case.bench.fresh()
    scorer = case.criterion.scorer(model, case.bench.graph, event=0)
    train(model, scorer, case.first)
    state = scorer.state()
    kept = _saved(state)
    train(model, scorer, case.second)  # the state that was handed out must not go on with it
    scorer.close()
    if changed := [name for name, value in state.items() if not _equal(value, kept[name])]:
        return f"state() hands out {', '.join(changed)}, which later batches change; clone what is returned"
    resumed = case.criterion.scorer(model, case.bench.graph, event=0)
    resumed.load_state(kept)
    if unlike := difference(case.after_first, resumed.scores(), exact=True):
        return f"before a checkpoint and after it, {unlike}; put all that scores() needs into state()"
    train(model, resumed, case.second)
    resumed.close()
    if unlike := difference(case.after_both, resumed.scores(), exact=True):
        return f"of a whole window and a resumed one, {unlike}; put all that later batches need into state()"
    return None


def other_widths(case: Case) -> str | None:
    """Check that a state of other widths is refused, rather than read wrongly."""
    narrow = case.bench.narrower()
    state, other = _state(case, [case.first]), _state(case, [case.first], narrow)
    if {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in other.items()}:
        return None
    scorer = case.criterion.scorer(narrow.fresh(), narrow.graph, event=0)
    try:
        scorer.load_state(state)
    except ValueError:
        return None
    finally:
        scorer.close()
    return "load_state takes a state that was gathered at other widths; raise ValueError where shapes differ"


def merging(case: Case) -> str | None:
    """Check that the states of two scorers join to that of one that saw both batches, where order has no part."""
    swapped = score(case.criterion, case.bench, [case.second, case.first])
    if case.draws or difference(case.after_both, swapped):
        return None
    scorer = case.criterion.scorer(case.bench.fresh(), case.bench.graph, event=0)
    try:
        scorer.load_state(scorer.merge_states([_state(case, [batch]) for batch in (case.first, case.second)]))
        unlike = difference(case.after_both, scorer.scores())
    finally:
        scorer.close()
    if unlike:
        return f"of one scorer that saw two batches, and of two that saw one each, {unlike}; override merge_states"
    return None


def carry_over(case: Case) -> str | None:
    """Check that a new scorer follows after an event, and that a memory stays with its channels."""
    scores, problem = _over_an_event(case.criterion, case.bench, case)
    if problem or case.draws:
        return problem
    permuted = case.bench.permuted()
    moved, problem = _over_an_event(case.criterion, permuted, case)
    if problem:
        return problem
    expected = {name: score_C[_survivors(permuted, name)] for name, score_C in scores.items()}
    if unlike := difference(expected, moved):
        return f"of channels in another order, after an event, {unlike}; in carry_over, keep the channels not in remove"
    return None


REMOVED = (1, 3)


def _survivors(permuted: Bench, name: str) -> Tensor:
    """Where the channels that stay stand, among those that stay of the original order."""
    order = permuted.orders[name]
    if name not in permuted.learning:
        return order
    stay = [c for c in order.tolist() if c not in REMOVED]
    return torch.tensor([sorted(stay).index(c) for c in stay])


def _over_an_event(criterion: Criterion, on: Bench, case: Case) -> tuple[dict[str, Tensor], str | None]:
    """Score, remove, follow, score and resume once more, as a fit does."""
    model = on.fresh()
    before = criterion.scorer(model, on.graph, event=0)
    train(model, before, case.first)
    before.scores()
    graph, remove = on.cut(model, REMOVED)
    before.close()
    after = criterion.scorer(model, graph, event=1)
    after.carry_over(before, remove)
    train(model, after, case.second)
    scores, state = after.scores(), _saved(after.state())
    after.close()
    small = Bench(model, graph)
    if problem := form_of(scores, small):
        return {}, f"after an event that removed channels: {problem}"
    resumed = criterion.scorer(model, graph, event=1)
    resumed.load_state(state)
    unlike = difference(scores, resumed.scores(), exact=True)
    resumed.close()
    return (
        scores,
        f"after an event, before a checkpoint and after it, {unlike}; put the memory into state()" if unlike else None,
    )


def _state(case: Case, data: Sequence[Batch], on: Bench | None = None) -> dict[str, Any]:
    on = on or case.bench
    model = on.fresh()
    scorer = case.criterion.scorer(model, on.graph, event=0)
    try:
        for batch in data:
            train(model, scorer, batch)
        return scorer.state()
    finally:
        scorer.close()


def _saved(state: dict[str, Any]) -> dict[str, Any]:
    """Bring a state into a checkpoint and back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))
