"""The conformance test for a criterion of one's own: every rule that the callback counts on, on small networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.conformance import model, scores, settings, state
from lightning_taylor.criteria.conformance.rules import Case, Rule

__all__ = [
    "RULES",
    "CriterionError",
    "check_criterion",
]

_STAGES: tuple[dict[str, Rule], ...] = (
    {
        "the arguments of __init__": settings.parameters,
    },
    {
        "repr": settings.round_trip_of_repr,
        "built from YAML": settings.yaml,
        "copies of the criterion": settings.copies,
        "defaults": settings.defaults,
    },
    {
        "one finite score for each channel": scores.form,
    },
    {
        "the same scores for the same batches": scores.deterministic,
        "no scores without a batch": scores.fresh,
        "settings stay as they are": settings.reuse,
    },
    {
        "training goes on as without it": model.same_training,
        "no global random numbers": model.random_numbers,
        "nothing left on the model": model.left_behind,
        "scores can be read at any time": scores.repeatable,
        "every batch counts": scores.batches_count,
        "batches that are not finite": scores.not_finite,
        "the scale of the loss": scores.loss_scale,
        "other backward passes": scores.other_passes,
        "batches that are evaluated twice": scores.closures,
        "passes without gradients": scores.evaluation,
        "pause and resume": scores.pausing,
        "copies of the model": scores.copied_models,
        "the order of channels": scores.permutation,
        "a state of plain tensors": state.plain_state,
    },
    {
        "resume from a state": state.resuming,
    },
    {
        "a state of other widths": state.other_widths,
        "states of several scorers": state.merging,
        "carry over an event": state.carry_over,
    },
)
"""Rule in words -> its test. A stage is left out where an earlier one is broken: it would say the same once more."""

RULES: tuple[str, ...] = tuple(rule for stage in _STAGES for rule in stage)
"""All rules, in the order in which they are checked."""


class CriterionError(AssertionError):
    """A criterion that breaks rules; the message lists all of them, each with the value and the way out.

    Attributes:
        broken: rule -> what is wrong.
    """

    def __init__(self, criterion: Criterion, broken: Mapping[str, str]) -> None:
        self.broken = dict(broken)
        listed = "".join(f"\n- {rule}: {problem}" for rule, problem in broken.items())
        super().__init__(f"{type(criterion).__name__} breaks {len(broken)} of the rules of a criterion:{listed}")


def check_criterion(criterion: Criterion) -> None:
    """Check that a criterion keeps every rule that the callback counts on; a few seconds on the CPU.

    It scores a small convolutional network (a residual block, a flattened map, a branch that gets no gradient) under
    everything that happens in a fit: accumulation and loss scales, batches that overflow, closures, copies of the
    model, checkpoints in the middle of a window, and events. Put it into your tests, once for each setting that
    changes what is computed.

    A criterion in which chance has a part shows it by scores that differ from event to event; then what chance decides
    is left out: whether scores go with their channels, add up, and stay the same with two evaluations of a batch.

    Args:
        criterion: with settings under which a window holds at least 24 examples.

    Raises:
        CriterionError: if rules are broken; its message lists them.
        TypeError: if it is no criterion.

    Example:
        >>> from lightning_taylor.criteria.taylor_batch import TaylorBatch
        >>> check_criterion(TaylorBatch(momentum=0.9))
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"check_criterion takes a criterion such as Taylor(), got {criterion!r}")
    case, threads = Case(criterion), torch.get_num_threads()
    torch.set_num_threads(1)  # small nets gain nothing from a second one
    try:
        for stage in _STAGES:
            if broken := _broken(case, stage):
                raise CriterionError(criterion, broken)
    finally:
        torch.set_num_threads(threads)


def _broken(case: Case, rules: Mapping[str, Rule]) -> dict[str, str]:
    problems = {name: _problem(case, rule) for name, rule in rules.items()}
    return {name: problem for name, problem in problems.items() if problem is not None}


def _problem(case: Case, rule: Rule) -> str | None:
    try:
        return rule(case)
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
