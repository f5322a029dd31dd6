"""Rules about the scores: their form, what they depend on, and what they must not depend on.

Shape legend: C = channels of a group.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.conformance.bench import Bench, difference, loss_of, score, train
from lightning_taylor.criteria.conformance.rules import Case

__all__ = [
    "batches_count",
    "closures",
    "copied_models",
    "deterministic",
    "evaluation",
    "form",
    "form_of",
    "fresh",
    "loss_scale",
    "not_finite",
    "other_passes",
    "pausing",
    "permutation",
    "repeatable",
]


def form(case: Case) -> str | None:
    """Check the scores after two batches: every group that learns, one finite number for each channel."""
    model = case.bench.fresh()
    scorer = case.criterion.scorer(model, case.bench.graph, event=0)
    try:
        for batch in (case.first, case.second):
            train(model, scorer, batch)
        unscorable = dict(scorer.unscorable)
        scores = scorer.scores()
    finally:
        scorer.close()
    unknown = [name for name in unscorable if name not in case.bench.graph.groups]
    if unknown or not all(isinstance(reason, str) and reason for reason in unscorable.values()):
        return f"unscorable is {unscorable}; return group name -> the reason in words"
    if problem := form_of(scores, case.bench):
        return problem
    if both := sorted(set(scores) & set(unscorable)):
        return f"groups {both} have scores and are called unscorable; leave them out of one of the two"
    missing = [n for n in case.bench.learning if n not in scores and n not in unscorable]
    if missing:
        return f"groups {missing} got gradients in two batches and have no score; score them, or say why in unscorable"
    return None


def form_of(scores: Any, bench: Bench) -> str | None:
    """Say what is wrong with scores, of whichever groups are there."""
    if not isinstance(scores, Mapping):
        return f"scores() returns {type(scores).__name__}; return a dict of group name -> tensor"
    for name, score_C in scores.items():
        if name not in bench.graph.groups:
            return f"scores() names {name!r}; the groups are {', '.join(bench.graph.groups)}"
        if problem := _form_of_one(score_C, bench.graph.groups[name].size):
            return f"the scores of group {name!r} {problem}"
    return None


def _form_of_one(score_C: Any, size: int) -> str | None:
    if not isinstance(score_C, Tensor):
        return f"are a {type(score_C).__name__}; return a tensor"
    if tuple(score_C.shape) != (size,):
        return f"have shape {tuple(score_C.shape)}; return one number for each of its {size} channels"
    if score_C.dtype != torch.float32:
        return f"are {score_C.dtype}; return torch.float32"
    if score_C.device.type != "cpu" or score_C.requires_grad:
        return f"are on {score_C.device} and requires_grad is {score_C.requires_grad}; return score.detach().cpu()"
    if not bool(score_C.isfinite().all()):
        return f"are {score_C.tolist()}; leave out a group of which nothing is known, in place of nan or infinity"
    return None


def fresh(case: Case) -> str | None:
    """Check a scorer that has seen nothing: an event may come before the first batch, and a batch without a pass."""
    scorer = case.criterion.scorer(case.bench.fresh(), case.bench.graph, event=0)
    try:
        if problem := form_of(scorer.scores(), case.bench):
            return f"before any batch: {problem}"
        scorer.drop_batch()
        scorer.after_backward()
        scorer.end_batch(examples=1)
        scorer.sync()
        problem = form_of(scorer.scores(), case.bench)
        return f"after a batch without a pass: {problem}" if problem else None
    finally:
        scorer.close()


def deterministic(case: Case) -> str | None:
    """Check that the same batches and the same event give the same bits: ranks and resumed fits must agree."""
    again = score(case.criterion, case.bench, [case.first, case.second])
    if unlike := difference(case.after_both, again, exact=True):
        return f"the same two batches give {unlike}; draw from a torch.Generator seeded with the event"
    return None


def repeatable(case: Case) -> str | None:
    """Check that reading the scores changes nothing: they may be read between two events, and are normalised."""
    model = case.bench.fresh()
    scorer = case.criterion.scorer(model, case.bench.graph, event=0)
    try:
        train(model, scorer, case.first)
        for score_C in scorer.scores().values():
            score_C.fill_(7.0)
        once = scorer.scores()
        scorer.sync()
        if unlike := difference(case.after_first, once) or difference(once, scorer.scores()):
            return f"read again, the scores are {unlike}; return new tensors, and forget nothing in scores() or sync()"
    finally:
        scorer.close()
    return None


def batches_count(case: Case) -> str | None:
    """Check that both of two batches count."""
    if difference(case.after_first, case.after_second) is None:
        return None  # no data in it
    for alone, other in ((case.after_second, "first"), (case.after_first, "second")):
        if difference(case.after_both, alone) is None:
            return f"two batches give the scores that one gives without the {other}; gather all since the scorer began"
    return None


def not_finite(case: Case) -> str | None:
    """Check that a batch that overflowed leaves the scores finite, and those of the others in place."""
    x, y = case.first
    broken = (torch.full_like(x, torch.nan), y)
    scores = score(case.criterion, case.bench, [case.first, broken, case.second])
    if problem := form_of(scores, case.bench):
        return f"after a batch of nan: {problem}; drop such a batch, as ChannelSums does"
    if unlike := None if case.draws else difference(case.after_both, scores):
        return (
            f"with a batch of nan between two others, and without it, {unlike}; drop such a batch, as ChannelSums does"
        )
    return None


def loss_scale(case: Case) -> str | None:
    """Check that what the loss is multiplied by is taken out of the scores again."""
    for scale in (1024.0, 0.5):
        scaled = score(case.criterion, case.bench, [case.first, case.second], scale=scale)
        if unlike := difference(case.after_both, scaled):
            return f"with a loss of 1 and {scale:g} times the size, {unlike}; divide gradients by grad_scale"
    return None


def other_passes(case: Case) -> str | None:
    """Check that a gradient that the training step takes for itself does not count."""
    scores = score(case.criterion, case.bench, [case.first, case.second], other_pass=True)
    if unlike := difference(case.after_both, scores):
        return (
            f"without and with torch.autograd.grad before the backward pass, {unlike}; forget in before_backward what "
            "the hooks saw until there"
        )
    return None


def closures(case: Case) -> str | None:
    """Check that of two evaluations of one batch the last counts."""
    scores = score(case.criterion, case.bench, [case.first, case.second], twice=True)
    if unlike := None if case.draws else difference(case.after_both, scores):
        return f"with one and two evaluations of each batch, {unlike}; forget in drop_batch what the first one left"
    return None


def evaluation(case: Case) -> str | None:
    """Check that passes without gradients do not count."""

    def evaluate(model: nn.Module, scorer: Scorer) -> None:
        with torch.no_grad():
            model(case.second[0] * 3)

    if unlike := _between(case, evaluate):
        return f"without and with a forward pass under no_grad between two batches, {unlike}; skip it in the hooks"
    return None


def pausing(case: Case) -> str | None:
    """Check that passes between ``pause`` and ``resume`` do not count, and those after do."""

    def pass_by(model: nn.Module, scorer: Scorer) -> None:
        scorer.pause()
        loss = loss_of(model, (case.second[0] * 3, case.second[1]))
        scorer.on_loss(loss)
        scorer.before_backward()
        loss.backward()
        scorer.after_backward()
        scorer.end_batch(examples=len(case.second[0]))
        scorer.resume()

    if unlike := _between(case, pass_by):
        return f"without and with a paused pass between two batches, {unlike}; skip it in the hooks, until resume"
    return None


def copied_models(case: Case) -> str | None:
    """Check that a copy of the model (an average of its weights) is not scored along."""

    def use_a_copy(model: nn.Module, scorer: Scorer) -> None:
        copied = copy.deepcopy(model)
        loss_of(copied, (case.second[0] * 3, case.second[1])).backward()
        scorer.end_batch(examples=len(case.second[0]))

    if unlike := _between(case, use_a_copy):
        return (
            f"without and with a pass of a copy of the model between two batches, {unlike}; a hook that is copied with "
            "its module must do nothing: see HookedScorer"
        )
    return None


def permutation(case: Case) -> str | None:
    """Check that the scores go with the channels, in whichever order these stand."""
    if case.draws:
        return None
    permuted = case.bench.permuted()
    scores = score(case.criterion, permuted, [case.first, case.second])
    expected = {n: score_C[permuted.orders[n]] for n, score_C in case.after_both.items()}
    if unlike := difference(expected, scores):
        return f"of channels in another order, expected and returned: {unlike}; take the entries of each slice's index"
    return None


def _between(case: Case, do: Callable[[nn.Module, Scorer], None]) -> str | None:
    """Say how scores change by what is done between two batches."""
    return difference(case.after_both, _interrupted(case.criterion, case, do))


def _interrupted(criterion: Criterion, case: Case, do: Callable[[nn.Module, Scorer], None]) -> dict[str, Tensor]:
    model = case.bench.fresh()
    scorer = criterion.scorer(model, case.bench.graph, event=0)
    try:
        train(model, scorer, case.first)
        model.zero_grad(set_to_none=True)
        do(model, scorer)
        train(model, scorer, case.second)
        return scorer.scores()
    finally:
        scorer.close()
