"""The validations of a fit: what they logged, and the one that has to come before the first event."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

__all__ = ["logged_in_validation", "validate_dense"]


def logged_in_validation(trainer: Trainer) -> set[str]:
    """Return the names of the metrics that the validation loop logged, in ``on_validation_end``.

    ``callback_metrics`` holds those of the training as well, and what other callbacks put there, such as learning
    rates. A metric that is logged at every step and for the epoch counts once.
    """
    results: Any = trainer._results  # of the loop that runs; Lightning has no public name for them
    found = results.metrics(False)["callback"] if results is not None else {}
    return {name for name in found if not (name.endswith("_step") and name.removesuffix("_step") in found)}


def validate_dense(trainer: Trainer) -> None:
    """Run the validation loop between two steps, as the Trainer does when a validation is due.

    Callbacks, loggers and the module see an ordinary validation. The generators of random numbers are put back, so that
    training goes on as it would have without.

    Args:
        trainer: in ``on_train_batch_end``, with a validation; on every rank.
    """
    loops: Any = trainer.fit_loop.epoch_loop
    connector: Any = trainer._logger_connector  # Lightning has no public way to validate in the middle of a fit
    first_step = connector._first_loop_iter
    with isolate_rng():
        trainer.validating = True
        loops.val_loop.run()
        trainer.training = True
    connector._first_loop_iter = first_step
