"""What all ranks of a fit do together: rank zero traces, decides and measures, and every rank follows."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast, final

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer

from lightning_taylor.checkpoint.load import PrunedCheckpointMixin
from lightning_taylor.errors import (
    NothingToPruneError,
    PruningError,
    TargetUnreachableError,
    UncoupledChannelsError,
)
from lightning_taylor.fit import logging as loggers
from lightning_taylor.fit.news import News
from lightning_taylor.fit.session import Session
from lightning_taylor.fit.trainer_state import copies_of, optimized_names, warn_of_unreachable
from lightning_taylor.fit.training_step import repeatable
from lightning_taylor.fit.validation import logged_in_validation, validate_dense
from lightning_taylor.fit.way_out import with_way_out
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.record import fingerprint
from lightning_taylor.report.event import PruningEvent
from lightning_taylor.trace.api import require_groups
from lightning_taylor.trace.options import TraceOptions
from lightning_taylor.trace.recorder import Recording
from lightning_taylor.utilities.calls import ForwardCall
from lightning_taylor.utilities.compile import forget_compiled
from lightning_taylor.utilities.lightning_names import either

__all__ = [
    "Ranks",
    "check_agreement",
    "check_return",
    "check_strategy",
    "comes_back",
    "share",
    "widths_changed",
]


@final
class Ranks:
    """The turns of a pruning that need the strategy, and the Trainer's other callbacks with what they keep.

    Args:
        news: what is said of them.

    Where it takes ``own``, that is the callback that prunes, which keeps no copy of the model. It is not held: a module
    may bring its callback along, and would be copied in circles.
    """

    def __init__(self, news: News) -> None:
        self._news = news
        self._told: set[str] = set()

    def warn_of_copies(self, trainer: Trainer, pl_module: LightningModule, own: Callback) -> None:
        """Name the copies of the parameters that cannot be pruned along, each one once."""
        warn_of_unreachable(trainer, pl_module, own, self._told)

    def begin(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        session: Session,
        recording: Recording,
        trace: Callable[..., ChannelGraph],
        options: TraceOptions,
    ) -> None:
        """Trace on rank zero, share the graph, and start to score.

        Args:
            trainer: of the fit.
            pl_module: at its dense widths.
            session: begins with the graph.
            recording: what the first step called.
            trace: traces these calls with ``options=``.
            options: of the trace.

        Raises:
            NothingToPruneError: if no channel can go.
            TargetUnreachableError: if too few can go; both name the options that would help.
        """

        def retrace(other: TraceOptions) -> ChannelGraph:
            return trace(recording.calls, options=other, forward=recording.forward)

        def traced() -> ChannelGraph:
            graph = retrace(options)
            try:
                return require_groups(graph)
            except NothingToPruneError as error:
                raise with_way_out(error, graph, session.options, options, retrace) from None

        graph = self._news.trace(pl_module, lambda: share(trainer.strategy, traced))
        called = _measured_calls(pl_module, session, recording)
        later = any(isinstance(c, either(BaseFinetuning)) for c in trainer.callbacks)  # type: ignore[attr-defined]
        try:
            known = (None, None) if later else (recording.differentiable, optimized_names(trainer, pl_module))
            session.begin(pl_module, graph, *known)
        except TargetUnreachableError as error:
            raise with_way_out(error, graph, session.options, options, retrace) from error
        self._measure_with(trainer, session, *called)

    def go_on(self, trainer: Trainer, pl_module: LightningModule, session: Session, recording: Recording) -> None:
        """A model that was traced before is called as ever: note with what, for the report and the measurements."""
        self._measure_with(trainer, session, *_measured_calls(pl_module, session, recording))

    def _measure_with(self, trainer: Trainer, session: Session, calls: list[ForwardCall], batch: int | None) -> None:
        session.report.begin(calls, batch)
        share(trainer.strategy, lambda: session.pruner.measure_with(calls, batch))

    def event(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        own: Callback,
        session: Session,
        optimizers: Sequence[Optimizer],
        *,
        batch: Any,
        oracle_sample: int,
    ) -> PruningEvent | None:
        """Rank zero decides what goes, all ranks remove it, and the loggers are told.

        Before the first event the dense model is validated, if it was not and the fit has a validation.

        Returns:
            What the event did; None if it has to wait.
        """
        if session.lacks_baseline and trainer.enable_validation:
            self._news.baseline()
            validate_dense(trainer)
        began, before = time.perf_counter(), session.size
        decided = share(trainer.strategy, session.decide)
        if isinstance(decided, str):
            rank_zero_warn(decided)
            return None
        check_agreement(trainer.strategy, decided.remove)
        self.warn_of_copies(trainer, pl_module, own)  # some are made in the course of the fit
        correlation: float | None = None
        if oracle_sample and trainer.is_global_zero:
            with isolate_rng():
                correlation = session.check_scores(pl_module, batch, oracle_sample)
        session.remove(decided, optimizers, copies_of(trainer, pl_module, own))
        if decided.remove:
            widths_changed(trainer.strategy, pl_module)
        event, scores = session.last_event
        loggers.log_event(trainer, event, size := session.size, scores, correlation)
        channels = sum(map(len, event.removed.values()))
        told = PruningEvent.between(before, size, event.step, channels, time.perf_counter() - began)
        self._news.event(told)
        return told

    def validated(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        own: Callback,
        session: Session,
        optimizers: Sequence[Optimizer],
    ) -> None:
        """Let the guard see a validation's metrics as rank zero has them; all ranks go back if it says so."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        logged = {name: metrics[name] for name in metrics if name in logged_in_validation(trainer)}
        (metrics, logged), graph = share(trainer.strategy, lambda: (metrics, logged)), session.graph
        session.report.note(logged, session.progress.step, session.pruner)
        said = session.validated(metrics, optimizers, copies_of(trainer, pl_module, own))
        if said:
            rank_zero_warn(said)
        if session.graph is not graph:
            widths_changed(trainer.strategy, pl_module)
            loggers.log_size(trainer, session.size)


T = TypeVar("T")


def _measured_calls(
    pl_module: LightningModule, session: Session, recording: Recording
) -> tuple[list[ForwardCall], int | None]:
    """Return the calls that are measured, and at how many examples; None for as many as they have.

    These are the user's example inputs; without any, what the step called, at the batch of the first step of the fit: a
    resume may begin with the last batch of an epoch, which is often a smaller one.
    """
    if recording.forward:
        return [recording.forward], None
    return repeatable(pl_module, recording.calls), session.report.notes.batch


def comes_back(strategy: Strategy) -> bool:
    """Whether the fit runs in child processes, whose parent loads the weights that they leave."""
    return isinstance(strategy.launcher, either(_MultiProcessingLauncher))


def check_return(strategy: Strategy, module: LightningModule) -> None:
    """Refuse a fit whose result would not fit the module that it is brought back to.

    Raises:
        MisconfigurationException: with both ways out.
    """
    if comes_back(strategy) and not isinstance(module, PrunedCheckpointMixin):
        raise MisconfigurationException(
            f"this strategy trains in child processes, and then loads the weights into the unpruned "
            f"{type(module).__name__} of their parent, which have other shapes. Write "
            f"`class {type(module).__name__}(PrunedCheckpointMixin, ...)`, or use strategy='ddp' in a script"
        )


def check_strategy(strategy: Strategy, allow_untested: bool) -> None:
    """Refuse what cannot work: parameters that are sharded, or held by another runtime.

    Raises:
        MisconfigurationException: naming the strategy and those that work.
    """
    supported = isinstance(strategy, either(SingleDeviceStrategy, DDPStrategy))
    supported = supported and not isinstance(strategy, either(DeepSpeedStrategy))
    if (not supported or "XLA" in type(strategy).__name__) and not allow_untested:
        raise MisconfigurationException(
            f"TaylorPruning does not work with {type(strategy).__name__}: it cannot cut parameters that are sharded or "
            "held by another runtime. Use a single device or strategy='ddp', or pass allow_untested_strategy=True"
        )


def share(strategy: Strategy, make: Callable[[], T]) -> T:
    """What rank zero makes, on every rank; if it raises there, it raises everywhere.

    Raises:
        Exception: whatever ``make`` raised on rank zero.
    """
    made: tuple[T | None, Exception | None] = None, None
    if strategy.is_global_zero:
        try:
            made = make(), None
        except Exception as error:
            if getattr(strategy, "world_size", 1) == 1:
                raise
            made = None, _portable(error)
    result, error = cast(tuple[T, Exception | None], strategy.broadcast(made))
    if error is not None:
        raise error
    return result


def check_agreement(strategy: Strategy, remove: Mapping[str, Tensor]) -> None:
    """Compare a decision over all ranks.

    Raises:
        UncoupledChannelsError: on every rank, if any of them has another one; nothing was removed.
    """
    # Equal counts with unequal indices would pass DDP's own checks and let the ranks drift apart.
    mine = fingerprint(remove)
    if not strategy.reduce_boolean_decision(mine == strategy.broadcast(mine)):
        raise UncoupledChannelsError("the ranks were told to remove different channels; nothing was removed")


def _portable(error: Exception) -> Exception:
    """An error that survives the way to another process; most do as they are."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return PruningError(f"{type(error).__name__} on rank 0: {error}")
    return error


def widths_changed(strategy: Strategy, pl_module: LightningModule) -> None:
    """Let everything that keeps shapes forget them: DDP's buckets and accumulators, compiled code."""
    if isinstance(strategy, either(DDPStrategy)):
        ddp: Any = strategy
        ddp.model = pl_module
        ddp._pl_static_graph_delay_done = False
        ddp.configure_ddp()
    forget_compiled()
