"""What all ranks of a fit do together: rank zero traces, decides and measures, and every rank follows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_taylor.host import check_agreement, copies_of, share, trace_step, warn_of_unreachable, widths_changed
from lightning_taylor.report import loggers
from lightning_taylor.session import Session
from lightning_taylor.trace.api import require_groups
from lightning_taylor.trace.options import Choices
from lightning_taylor.utilities.calls import ForwardCall

__all__ = ["Together"]


@final
class Together:
    """The turns of a pruning that need the strategy, and the Trainer's other callbacks with what they keep.

    Where it takes ``own``, that is the callback that prunes, which keeps no copy of the model. It is not held: a module
    may bring its callback along, and would be copied in circles.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def warn_of_copies(self, trainer: Trainer, pl_module: LightningModule, own: Callback) -> None:
        """Name the copies of the parameters that cannot be pruned along, each one once."""
        warn_of_unreachable(trainer, pl_module, own, self._told)

    def begin(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        session: Session,
        calls: list[ForwardCall],
        ignore: Sequence[str],
        choices: Choices,
    ) -> None:
        """Trace on rank zero, share the graph, and start to score."""
        sought = partial(trace_step, pl_module, calls, ignore=ignore, choices=choices)
        graph = share(trainer.strategy, lambda: require_groups(sought()))
        session.begin(pl_module, graph, calls)
        share(trainer.strategy, lambda: session.measure_with(calls))

    def go_on(self, trainer: Trainer, session: Session, calls: list[ForwardCall]) -> None:
        """A model that was traced before is called as ever: note with what, for the report and the measurements."""
        session.report.begin(calls)
        share(trainer.strategy, lambda: session.measure_with(calls))

    def event(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        own: Callback,
        session: Session,
        *,
        batch: Any,
        oracle_sample: int,
    ) -> None:
        """Rank zero decides what goes, all ranks remove it, and the loggers are told."""
        decided = share(trainer.strategy, session.decide)
        if isinstance(decided, str):
            rank_zero_warn(decided)
            return
        check_agreement(trainer.strategy, decided.remove)
        self.warn_of_copies(trainer, pl_module, own)  # some are made in the course of the fit
        correlation: float | None = None
        if oracle_sample and trainer.is_global_zero:
            with isolate_rng():
                correlation = session.check_scores(pl_module, batch, oracle_sample)
        session.remove(decided, trainer.optimizers, copies_of(trainer, pl_module, own))
        if decided.remove:
            widths_changed(trainer.strategy, pl_module)
        event, scores = session.last_event
        loggers.log_event(trainer, event, session.size, scores, correlation)

    def validated(self, trainer: Trainer, pl_module: LightningModule, own: Callback, session: Session) -> None:
        """Let the guard see a validation's metrics as rank zero has them; all ranks go back if it says so."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics, graph = share(trainer.strategy, lambda: metrics), session.graph
        said = session.validated(metrics, trainer.optimizers, copies_of(trainer, pl_module, own))
        if said:
            rank_zero_warn(said)
        if session.graph is not graph:
            widths_changed(trainer.strategy, pl_module)
            loggers.log_size(trainer, session.size)
