"""One pruning from the dense model to the target: what outlives an event, a checkpoint and a second fit.

The callback says what happened in the Trainer; the session knows what is due. It never speaks to the Trainer itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_taylor.checkpoint.widths import widths_of
from lightning_taylor.criteria.base import IdleScorer, Scorer
from lightning_taylor.fit.guard import GuardWatch
from lightning_taylor.fit.options import Options
from lightning_taylor.fit.progress import ScheduleProgress
from lightning_taylor.fit.pruner import Pruner
from lightning_taylor.fit.report import FitReport, class_path
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.guard import Guard
from lightning_taylor.plan.measured_search import Selection
from lightning_taylor.plan.pace import Standing
from lightning_taylor.plan.record import Event
from lightning_taylor.plan.schedule import Schedule
from lightning_taylor.report.state import PruningState, check_version, read_state
from lightning_taylor.report.summary import PruningSummary, Size, widths_now
from lightning_taylor.study.spot_check import SpotCheck
from lightning_taylor.surgery.mirrors import Copy
from lightning_taylor.utilities.compile import EagerMode, compiled_graphs, forget_compiled

__all__ = [
    "Session",
]


@final
class Session:
    """The state of a pruning.

    Args:
        options: what to reach and how to choose.
        guard: when to hold back; None for never.
        baseline: metric -> its value of the dense model, where the user knows it.
    """

    def __init__(
        self, options: Options, guard: Guard | None = None, baseline: Mapping[str, float] | None = None
    ) -> None:
        self.options = options
        self.report = FitReport(baseline)
        self._guard = GuardWatch(guard, (baseline or {}).get(guard.monitor)) if guard else None
        self._pruner: Pruner | None = None
        self._scores: Mapping[str, Any] = {}
        self._eager_mode = EagerMode()
        self._scores_batch = True
        self.begin_fit()

    def begin_fit(self, device: torch.device | None = None) -> None:
        """A fit begins on a device, perhaps the second one: steps are counted from here, and the schedule laid anew."""
        if device is not None:
            self.options = self.options.on(device)
            if self._pruner:
                self._pruner.begin_on(device)
        self.progress = ScheduleProgress()
        self._under_way = False
        self._spot_check = SpotCheck()
        self._state_is_checked = False
        self.changed = False
        """Whether this fit has removed anything."""
        self._compiled = compiled_graphs()

    @property
    def traced(self) -> bool:
        """Whether the graph is known."""
        return self._pruner is not None

    @property
    def active(self) -> bool:
        """Whether a fit is under way on a traced model."""
        return self._active_pruner is not None

    @property
    def _active_pruner(self) -> Pruner | None:
        """The pruner, if a fit is under way."""
        return self._pruner if self._under_way else None

    @property
    def scorer(self) -> Scorer:
        """What gathers the scores of the present batch; one that gathers nothing if it is not to be scored."""
        return self._active_pruner.scorer if self._active_pruner and self._scores_batch else IdleScorer()

    @property
    def pruner(self) -> Pruner:
        """The pruner of a traced model."""
        assert self._pruner is not None
        return self._pruner

    @property
    def graph(self) -> ChannelGraph | None:
        """The channel graph at the present widths, if it is known."""
        return self._pruner.graph if self._pruner else None

    @property
    def last_event(self) -> tuple[Event, Mapping[str, Tensor]]:
        """The latest event, and the normalised scores that decided it; those only on rank zero."""
        assert self._pruner is not None
        return self._pruner.record.events[-1], self._pruner.scores

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self._pruner is not None and self._pruner.done

    @property
    def _is_over(self) -> bool:
        """Whether nothing more is removed, whatever the schedule says: the target is met, or the guard ended it."""
        return self.reached or (self._guard is not None and self._guard.ended)

    @property
    def shortfall(self) -> str:
        """What was asked for and what was reached, where that is not enough."""
        reached = ", ".join(f"{name}={value:.3f}" for name, value in self.fractions().items())
        return f"the target {self.options.target.asked} was not reached: {reached} of the dense model left"

    @property
    def lacks_baseline(self) -> bool:
        """Whether it is not known what the dense model is worth, and can still be found out by a validation."""
        if self.pruner.record.events or self.report.notes.curve:
            return False
        return not self.report.notes.baseline or (self._guard is not None and self._guard.dense is None)

    def owns(self, model: nn.Module) -> bool:
        """Whether nothing but this model was pruned so far."""
        return self._pruner is None or self._pruner.model is model

    def lay_schedule(self, schedule: Schedule | None, remaining: FitLength) -> None:
        """Fix the events of this fit, unless there is nothing left to remove: see ``ScheduleProgress.set_schedule``."""
        if not self.reached:
            self.progress.set_schedule(schedule, remaining)
        self._under_way = True

    def follow_pace(self, schedule: Schedule | None, standing: Standing) -> None:
        """Lay the schedule anew as ``ScheduleProgress.follow_pace`` does, unless there is nothing left to remove."""
        if not self._is_over:
            self.progress.follow_pace(schedule, standing)

    def begin(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        differentiable: Mapping[str, bool] | None = None,
        optimized: frozenset[str] | None = None,
    ) -> None:
        """Check what can be reached, now that the graph is known, and start to score.

        Args:
            model: at its dense widths.
            graph: its channels.
            differentiable: name of a module -> whether its input needs a gradient, of those that were called.
            optimized: names of the parameters that an optimizer holds, frozen or not; None if nobody knows.
        """
        self._pruner = Pruner(model, graph, self.options)
        self._pruner.differentiable, self._pruner.optimized = differentiable or {}, optimized
        self._pruner.start()
        forget_compiled()  # it does not look out for the hooks
        if self.progress.skips_first_batch:
            self._pruner.scorer.pause()  # its backward pass is still to come

    def go_on(self) -> None:
        """Go on with a model that was traced before, in an earlier fit or before a checkpoint; else a no-op."""
        if self._pruner:
            self._pruner.start()
            if self._scores:
                self._pruner.scorer.load_state(self._scores)
            self._scores = {}

    def start_batch(self, examples: int) -> None:
        """Decide whether a batch of so many examples is scored, and switch between two batches, never inside of one.

        It runs uncompiled if compiled code cannot gather what its scores need.
        """
        self._scores_batch = not self._is_over and self.progress.scores_next(self.options.score_batches)
        if self._active_pruner and self._scores_batch:
            self._active_pruner.scorer.resume()
        elif self._active_pruner:
            self._active_pruner.scorer.pause()
        if not self.scorer.compiles(examples):
            self._eager_mode.enable()

    def end_batch(self, examples: int, grad_scale: float | Tensor, *, stepped: bool) -> bool:
        """Take the scores of a batch in, and count its optimizer step.

        Returns:
            Whether channels have to go now.
        """
        self._eager_mode.disable()
        if not (pruner := self._active_pruner):
            return False
        self.scorer.end_batch(examples=examples, grad_scale=grad_scale)
        if not stepped:
            return False
        self.scorer.sync()  # every step that is scored, since a checkpoint holds the scores of rank zero only
        due = self.progress.advance()
        if pruner.done:
            self.progress.due = None  # nor is it in a later fit, for a smaller target
        allowed = self._guard is None or self._guard.allows
        return due is not None and allowed and not pruner.done

    def check_state(self, optimizers: Iterable[Optimizer]) -> None:
        """Refuse optimizers whose state cannot follow, after the first step that gave them some; then a no-op."""
        if self._state_is_checked or self._active_pruner is None or self.reached:
            return
        self._state_is_checked = True
        self._active_pruner.check_state(optimizers)

    def decide(self) -> Selection | str:
        """What the event that is due removes; or why it has to wait, in words."""
        assert self._pruner is not None
        schedule, due = self.progress.schedule, self.progress.due
        assert schedule is not None
        assert due is not None
        decided = self._pruner.decide(schedule, due)
        return f"the event of step {due} has to wait: {decided}" if isinstance(decided, str) else decided

    def check_scores(self, module: nn.Module, batch: Any, channels: int) -> float | None:
        """How well the scores of the event that is due rank some channels; a warning, once, where nobody can tell."""
        assert self._pruner is not None
        pruner, step = self._pruner, self.progress.step
        found = self._spot_check.correlation(module, pruner.graph, pruner.scores, batch, channels, step=step)
        if found is not None:
            self.report.note_oracle(self.progress.step, found)
        return found

    def remove(self, selection: Selection, optimizers: Iterable[Optimizer], copies: Iterable[Copy]) -> None:
        """Remove what was decided, from the model and all that mirrors it."""
        assert self._pruner is not None
        self._pruner.remove(selection, self.progress.step, optimizers, copies)
        self.progress.due = None
        self.changed |= bool(selection.remove)
        self.report.note_scores(self._pruner.scores)

    def validated(
        self, metrics: Mapping[str, float], optimizers: Iterable[Optimizer], copies: Iterable[Copy]
    ) -> str | None:
        """Ask the guard about a validation's metrics.

        Returns:
            What the guard decided, in words, if that is news. The graph changes if it went back.
        """
        assert self._pruner is not None
        if self._guard is None:
            return None
        said = self._guard.validated(metrics, self._pruner, optimizers, copies)
        return f"TaylorPruning at step {self.progress.step}: {said}" if said else None

    def fractions(self) -> dict[str, float]:
        """What remains of the dense model."""
        assert self._pruner is not None
        return self._pruner.fractions()

    @property
    def size(self) -> Size:
        """What remains, and how many channels each layer has."""
        assert self._pruner is not None
        return Size(self._pruner.fractions(), widths_now(self._pruner.graph))

    def show(self, data: Path, page: Path, **known: Any) -> PruningSummary:
        """Print the table, and write it as data and as a page; see ``FitReport.show``."""
        assert self._pruner is not None
        return self.report.show(self._pruner, data, page, compiled=compiled_graphs() - self._compiled, **known)

    def close(self) -> None:
        """Leave nothing on the model."""
        self._eager_mode.disable()
        if self.active and not self.reached:
            forget_compiled()  # the hooks that are taken off now were compiled in
        if self._pruner:
            self._pruner.close()
        self._under_way = False

    def state(self, settings: Mapping[str, str]) -> PruningState:
        """Everything that a resumed fit needs.

        Args:
            settings: the arguments of the callback, to compare those of the resumed fit with.
        """
        pruner, length = self._pruner, self.progress.length
        return PruningState(
            graph=self.graph,
            record=pruner.record if pruner else None,
            criterion=repr(self.options.criterion),
            scores=pruner.scorer.state() if pruner else {},
            step=self.progress.step,
            pending=self.progress.due,
            length=length and length.steps,
            epoch_length=length and length.epoch,
            pace=self.progress.pace,
            report=self.report.notes,
            asked=self.options.target.asked,
            model=class_path(pruner.model) if pruner else "",
            guard=self._guard.state if self._guard else None,
            widths=widths_of(self.graph),
            settings=settings,
            lowered_to=pruner.options.lowered_to if pruner else None,
        )

    def load(self, plain: Any, model: nn.Module) -> PruningState:
        """Take over a state in plain types, for a model that has its widths already.

        Raises:
            ValueError: if it is damaged, or was written by a version that this one does not know.
        """
        check_version(plain)
        try:
            state = read_state(plain)
            self._take_over(state, model)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint's pruning state cannot be read ({type(error).__name__}: {error}): it is damaged, or "
                "written by something else. Resume from another checkpoint, or load only the model, with load_pruned"
            ) from error
        return state

    def _take_over(self, state: PruningState, model: nn.Module) -> None:
        if state.pruned is None:
            return
        graph, record = state.pruned
        options = replace(self.options, lowered_to=state.lowered_to)
        self._pruner = Pruner(model, graph, options, record)  # first, since only this can fail
        # Sums of another criterion have another unit; the next event waits for its own.
        self._scores = state.scores if state.criterion == repr(self.options.criterion) else {}
        self.progress = ScheduleProgress(state.step, state.pending, state.fit_length, state.pace)
        self.report.load(state.report)
        if self._guard and state.guard:
            self._guard.load(state.guard)
