"""The spot check of ``oracle_sample`` at work: how well the scores of an event rank some of its channels."""

from __future__ import annotations

import warnings
from typing import Any, final

from torch import nn

from lightning_taylor.pruner import Pruner
from lightning_taylor.study.spot import spot_check

__all__ = ["Spotting"]


@final
class Spotting:
    """Checks the scores of one event after the other, and says once that it cannot."""

    def __init__(self) -> None:
        self._told = False

    def correlation(self, module: nn.Module, pruner: Pruner, batch: Any, channels: int, *, step: int) -> float | None:
        """Spearman's correlation of the scores with what the removal of some channels does to the loss.

        Args:
            module: a LightningModule, whose training step says the loss.
            pruner: with the scores of the event that is due.
            batch: what the loss is of.
            channels: how many are removed, one by one on a copy.
            step: of the event, which draws the channels.

        Returns:
            The correlation; None, after a warning the first time, if the training step needs its Trainer.
        """
        try:
            return spot_check(module, pruner.graph, pruner.scores, batch, channels, seed=step)
        except Exception as error:  # of the user's training step, which was not made to run apart from a Trainer
            if not self._told:
                name, said = type(module).__name__, f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"oracle_sample: {name}'s training step does not run apart from its Trainer: {said}", stacklevel=2
                )
            self._told = True
            return None
