"""The validations of a fit: what they logged, and whether one comes before the first event."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_taylor.plan.guard import Guard
from lightning_taylor.plan.schedule import Schedule

__all__ = ["logged_in_validation", "warn_of_late_validation"]

_LONGEST = 10**6  # steps that are looked through for the first event of a fit of unknown length


def logged_in_validation(trainer: Trainer) -> set[str]:
    """Return the names of the metrics that the validation loop logged, in ``on_validation_end``.

    ``callback_metrics`` holds those of the training as well, and what other callbacks put there, such as learning
    rates. A metric that is logged at every step and for the epoch counts once.
    """
    results: Any = trainer._results  # of the loop that runs; Lightning has no public name for them
    found = results.metrics(False)["callback"] if results is not None else {}
    return {name for name in found if not (name.endswith("_step") and name.removesuffix("_step") in found)}


def warn_of_late_validation(trainer: Trainer, guard: Guard, schedule: Schedule, length: float) -> None:
    """Warn of a guard that will have nothing to compare with, before any training is spent on it.

    Args:
        trainer: in ``on_train_start`` of a fit that has not begun to prune.
        guard: of the fit, without a baseline.
        schedule: of the fit, in steps.
        length: optimizer steps of the fit.
    """
    first = _first_validation(trainer)
    steps = range(1, int(min(length, _LONGEST)) + 1)
    event = next((step for step in steps if schedule.is_event(step)), None)
    if first is not None and event is not None and first >= event:
        rank_zero_warn(
            f"{guard!r} compares with the dense network, and the first validation comes at step {first}, not before "
            f"the first event at step {event}: begin later (start= of the schedule), validate more often "
            f"(val_check_interval= of the Trainer), or give TaylorPruning(baseline={{{guard.monitor!r}: ...}})"
        )


def _first_validation(trainer: Trainer) -> int | None:
    """Return after how many optimizer steps the first validation comes; None if nobody knows."""
    every, epoch = trainer.val_check_batch, trainer.num_training_batches
    if every is None or every == float("inf") or epoch == float("inf"):
        return None
    batches = int(every) + (
        int(epoch) * (trainer.check_val_every_n_epoch - 1) if trainer.check_val_every_n_epoch else 0
    )
    return -(-batches // trainer.accumulate_grad_batches)
