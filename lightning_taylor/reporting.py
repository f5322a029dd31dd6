"""What loggers and the screen hear of a pruning, and when: its settings, every step, the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_taylor.host import clear_screen
from lightning_taylor.report import loggers
from lightning_taylor.session import Session

__all__ = ["Reporting"]


@final
class Reporting:
    """One fit's news; events are told where they happen."""

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}
        self._started = False

    def fit_starts(self, trainer: Trainer, pl_module: LightningModule, settings: Mapping[str, Any]) -> None:
        """Add the settings to the hyperparameters that are logged.

        Args:
            trainer: whose loggers these are.
            pl_module: with hyperparameters of its own.
            settings: name -> value, of any type.
        """
        self._settings = loggers.plain_settings(**settings)
        self._started = False
        loggers.log_settings(trainer, pl_module, self._settings)

    def batch_ends(self, trainer: Trainer, pl_module: LightningModule, session: Session) -> None:
        """Log the dense model's size, once, before anything is removed from it."""
        if session.traced and not self._started:
            self._started = True
            loggers.log_start(trainer, pl_module, self._settings, session.size)

    def fit_ends(
        self, trainer: Trainer, pl_module: LightningModule, session: Session, *, measure_latency: bool
    ) -> None:
        """Say what was asked and what was achieved: on the screen, in files, to the loggers."""
        if not session.reached:
            rank_zero_warn(session.shortfall)
        clear_screen(trainer, pl_module, summarize=session.changed)
        folder, device = loggers.report_folder(trainer), trainer.strategy.root_device
        summary = session.show(folder, measure_latency=measure_latency, device=device)
        loggers.log_summary(trainer, summary, folder)
