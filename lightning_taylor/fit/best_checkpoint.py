"""Keeping the best of the networks that are small enough, rather than the one that was not pruned yet."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_taylor.fit.callback import TaylorPruning
from lightning_taylor.utilities.lightning_names import either

__all__ = [
    "PrunedModelCheckpoint",
]


class PrunedModelCheckpoint(ModelCheckpoint):
    """A ``ModelCheckpoint`` that compares only what has reached the target of the Trainer's ``TaylorPruning``.

    A network is usually best before it is pruned, so that "best" of an ordinary ``ModelCheckpoint`` is the dense one.
    Here the first candidate is the first network that is validated after the target was reached. ``save_last`` and
    ``save_on_exception`` save from the beginning: a fit can be resumed before there is any candidate.

    The arguments are those of ``ModelCheckpoint``.

    Example:
        >>> import lightning as L
        >>> best = PrunedModelCheckpoint(monitor="val_acc", mode="max", save_last=True)
        >>> trainer = L.Trainer(callbacks=[TaylorPruning(target=0.5), best], logger=False, accelerator="cpu")
    """

    _validated: bool | None = None
    """Whether the last validation was of a network that had reached the target; None if there was none."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit, validate, test or predict begins."""
        _check_trainer(self, trainer)
        super().setup(trainer, pl_module, stage)
        self._validated = None
        if stage == "fit":
            _pruner_of(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the validation loop begins: its metrics will be those of this network."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = _pruner_of(trainer).reached

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train ends: save the last one, and say if there is no best."""
        super().on_train_end(trainer, pl_module)
        if self.save_top_k != 0 and not self.best_model_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                "PrunedModelCheckpoint has no best checkpoint: no network was validated after the target was reached"
            )

    @override
    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # The one place that all of ModelCheckpoint's triggers go through to compare and save.
        old_metric = self.monitor is not None and self._validated is False
        if _pruner_of(trainer).reached and not old_metric:
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        elif self.save_last:
            # "last" follows right after, but only if something seems to have been saved in this step; and a link to
            # what was saved before would be a link to itself.
            self._last_global_step_saved = trainer.global_step
            self._last_checkpoint_saved = ""


def _check_trainer(callback: ModelCheckpoint, trainer: Trainer) -> None:
    """Refuse a Trainer to which this is no checkpoint callback: it would not let it come after the others."""
    kinds = zip(either(Trainer), either(ModelCheckpoint), strict=False)
    if not any(isinstance(trainer, host) and isinstance(callback, kind) for host, kind in kinds):
        raise MisconfigurationException(
            "PrunedModelCheckpoint is of lightning.pytorch and this Trainer of pytorch_lightning: use "
            "lightning_taylor.pl.PrunedModelCheckpoint"
        )


def _pruner_of(trainer: Trainer) -> TaylorPruning:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, TaylorPruning):
            return callback
    raise MisconfigurationException("PrunedModelCheckpoint needs a TaylorPruning among the Trainer's callbacks")
