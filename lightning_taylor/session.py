"""One pruning from the dense model to the target: what outlives an event, a checkpoint and a second fit.

The callback says what happened in the Trainer; the session knows what is due. It never speaks to the Trainer itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_taylor.graph.capture import CallRecorder
from lightning_taylor.graph.channels import ChannelGraph
from lightning_taylor.graph.passes import ForwardCall
from lightning_taylor.graph.plain import graph_from_plain, graph_to_plain
from lightning_taylor.guarding import Guarding
from lightning_taylor.host import Compiler, compiled_graphs, forget_compiled
from lightning_taylor.options import Options
from lightning_taylor.plan import Event, Record, Schedule, Selection, default_schedule
from lightning_taylor.plan.guard import Guard
from lightning_taylor.pruner import Pruner
from lightning_taylor.report.fit import FitReport
from lightning_taylor.report.summary import PruningSummary
from lightning_taylor.report.widths import Size, widths_now
from lightning_taylor.study.spot import spot_check
from lightning_taylor.surgery import Copy
from lightning_taylor.surgery.transaction import signals_deferred

__all__ = ["Session"]

VERSION = 1


@final
class Session:
    """The state of a pruning.

    Args:
        options: what to reach and how to choose.
        guard: when to hold back; None for never.
    """

    def __init__(self, options: Options, guard: Guard | None = None) -> None:
        self.options = options
        self.report = FitReport()
        self._guarding = Guarding(guard) if guard else None
        self._pruner: Pruner | None = None
        self._scores: Mapping[str, Any] = {}
        self._recorder: CallRecorder | None = None
        self._compiler = Compiler()
        self._schedule: Schedule | None = None
        self.begin_fit()

    def begin_fit(self) -> None:
        """A fit begins, perhaps the second: steps are counted from here, and the schedule laid anew."""
        self._step = 0
        self._length: float | None = None
        self._pending: int | None = None
        self._spent_batch = False
        self._unchecked = False
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
        return self._pruner is not None and self._schedule is not None

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
    def shortfall(self) -> str:
        """What was asked for and what was reached, where that is not enough."""
        reached = ", ".join(f"{name}={value:.3f}" for name, value in self.fractions().items())
        return f"the target {self.options.target.asked} was not reached: {reached} of the dense model left"

    def belongs_to(self, model: nn.Module) -> bool:
        """Whether nothing but this model was pruned so far."""
        return self._pruner is None or self._pruner.model is model

    def lay_schedule(self, schedule: Schedule | None, remaining: float) -> None:
        """Fix the events of this fit; a resumed one keeps the length that it began with.

        Args:
            schedule: the user's; by default a cubic one over the length of the fit.
            remaining: optimizer steps to come; infinite if nobody knows.

        Raises:
            ValueError: if the fit is too short for the schedule, or of unknown length and there is none.
        """
        if self.reached:
            return
        if self._length is None:
            self._length = remaining
        self._schedule = schedule or default_schedule(self._length)
        if self._length != float("inf"):
            self._schedule.check(int(self._length))

    def listen(self, model: nn.Module) -> None:
        """Record what the model is called with, until ``heard`` is asked."""
        with signals_deferred():  # a Ctrl-C among its hooks would leave some that nobody knows
            self._recorder = CallRecorder(model)

    def heard(self) -> list[ForwardCall] | None:
        """What the model was called with in this batch; None if nobody listened. Ends the recording."""
        if not self._recorder:
            return None
        calls = list(self._recorder.calls)
        self._recorder.close()
        self._recorder = None
        return calls

    def spend_batch(self) -> None:
        """The first batch goes to the trace, and is not scored.

        Raises:
            ValueError: if the schedule's only event comes right after it.
        """
        assert self._schedule is not None
        assert self._length is not None
        self._spent_batch = True
        later = range(2, int(min(self._length, 10**6)) + 1)
        if self._schedule.is_event(1) and not any(self._schedule.is_event(step) for step in later):
            raise ValueError(
                f"{self._schedule} has its only event after the first step, when no batch has been scored; set "
                "example_inputs= (or example_input_array on the module), or move the event to step 2 or later"
            )

    def begin(self, model: nn.Module, graph: ChannelGraph, calls: Sequence[ForwardCall]) -> None:
        """The graph is known: check what can be reached, and start to score."""
        self._pruner = Pruner(model, graph, self.options)
        self._pruner.start()
        forget_compiled()  # it does not look out for the hooks
        if self._spent_batch:
            self._pruner.pause()  # its backward pass is still to come
        self.report.begin(calls)

    def measure_with(self, calls: Sequence[ForwardCall]) -> None:
        """Get ready to measure, on rank zero alone: see ``Pruner.measure_with``."""
        if self._pruner:
            self._pruner.measure_with(calls)

    def go_on(self) -> None:
        """Go on with a model that was traced before, in an earlier fit or before a checkpoint; else a no-op."""
        if self._pruner:
            self._pruner.start()
            self._pruner.load_scorer_state(self._scores)
            self._scores = {}

    def see_batch(self, batch: Any | None, examples: int) -> None:
        """A training batch is about to be used; None if nobody has it yet."""
        if self._recorder:
            self._recorder.clear()
        if self._pruner and self._schedule:
            if batch is not None:
                self._pruner.see_batch(batch)
            if not self._pruner.compiles(examples):
                self._compiler.stop()

    def before_backward(self, loss: Tensor, *, again: bool) -> None:
        """The backward pass of a loss begins; ``again``: the only one of its batch, evaluated before perhaps."""
        if self._pruner and self._schedule:
            if again:
                self._pruner.drop_batch()
            self._pruner.before_backward(loss)

    def after_backward(self) -> None:
        """The backward pass of a loss has ended."""
        if self._pruner and self._schedule:
            self._pruner.after_backward()

    def end_objective(self, examples: int, grad_scale: float | Tensor) -> None:
        """What was gathered until here is of one objective; what comes now is perhaps of its opponent."""
        if self._pruner and self._schedule:
            self._pruner.end_batch(examples, grad_scale)

    def before_step(self, parameters: Iterable[Tensor], grad_scale: float | Tensor) -> None:
        """An optimizer is about to step these parameters, whose gradients still carry a scale."""
        if self._pruner and self._schedule:
            self._pruner.before_step(parameters, grad_scale)

    def end_batch(self, examples: int, grad_scale: float | Tensor, *, stepped: bool) -> bool:
        """A batch is over.

        Returns:
            Whether channels have to go now.
        """
        self._compiler.go_on()
        if not self._pruner or not self._schedule:
            return False
        self._pruner.end_batch(examples, grad_scale)
        if not stepped:
            return False
        self._step += 1
        self._pruner.synchronize()  # every step, since a checkpoint holds the scores of rank zero only
        scored = self._step > 1 or not self._spent_batch
        if scored and self._schedule.is_event(self._step):
            self._pending = self._step
        allowed = self._guarding is None or self._guarding.allows
        return self._pending is not None and allowed and not self._pruner.done

    def decide(self) -> Selection | str:
        """What the event that is due removes; or why it has to wait, in words."""
        assert self._pruner is not None
        assert self._schedule is not None
        assert self._pending is not None
        decided = self._pruner.decide(self._schedule, self._pending)
        return f"the event of step {self._pending} has to wait: {decided}" if isinstance(decided, str) else decided

    def check_scores(self, module: nn.Module, batch: Any, channels: int) -> float | None:
        """How well the scores of the event that is due rank some channels; a warning, once, where nobody can tell."""
        assert self._pruner is not None
        try:
            found = spot_check(module, self._pruner.graph, self._pruner.scores, batch, channels, seed=self._step)
        except Exception as error:  # of the user's training step, which was not made to run apart from a Trainer
            if not self._unchecked:
                name, said = type(module).__name__, f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"oracle_sample: {name}'s training step does not run apart from its Trainer: {said}", stacklevel=2
                )
            self._unchecked = True
            return None
        self.report.note_oracle(self._step, found)
        return found

    def remove(self, selection: Selection, optimizers: Iterable[Optimizer], copies: Iterable[Copy]) -> None:
        """Remove what was decided, from the model and all that mirrors it."""
        assert self._pruner is not None
        self._pruner.remove(selection, self._step, optimizers, copies)
        self._pending = None
        self.changed |= bool(selection.remove)
        self.report.note_scores(self._pruner.scores)

    def validated(
        self, metrics: Mapping[str, float], optimizers: Iterable[Optimizer], copies: Iterable[Copy]
    ) -> str | None:
        """Note a validation's metrics, and ask the guard.

        Returns:
            What the guard decided, in words, if that is news. The graph changes if it went back.
        """
        assert self._pruner is not None
        self.report.note(metrics, self._step, self._pruner)
        if self._guarding is None:
            return None
        said = self._guarding.validated(metrics, self._pruner, optimizers, copies)
        return f"TaylorPruning at step {self._step}: {said}" if said else None

    def fractions(self) -> dict[str, float]:
        """What remains of the dense model."""
        assert self._pruner is not None
        return self._pruner.fractions()

    @property
    def size(self) -> Size:
        """What remains, and how many channels each layer has."""
        assert self._pruner is not None
        return Size(self._pruner.fractions(), widths_now(self._pruner.graph))

    def show(self, folder: str | Path, *, measure_latency: bool, device: torch.device | None = None) -> PruningSummary:
        """Print the table, and write it as data and as a page into a folder; see ``FitReport.show``."""
        assert self._pruner is not None
        compiled = compiled_graphs() - self._compiled
        return self.report.show(self._pruner, folder, measure_latency=measure_latency, compiled=compiled, device=device)

    def close(self) -> None:
        """Leave nothing on the model."""
        self._compiler.go_on()
        self.heard()
        if self.active and not self.reached:
            forget_compiled()  # the hooks that are taken off now were compiled in
        if self._pruner:
            self._pruner.close()
        self._schedule = None

    def to_plain(self) -> dict[str, Any]:
        """Everything that a resumed fit needs, in types that load with ``weights_only=True``."""
        pruner = self._pruner
        return {
            "version": VERSION,
            "graph": graph_to_plain(pruner.graph) if pruner else None,
            "record": pruner.record.to_plain() if pruner else None,
            "criterion": repr(self.options.criterion),
            "scores": pruner.scorer_state() if pruner else {},
            "step": self._step,
            "length": self._length,
            "pending": self._pending,
            "report": self.report.to_plain(),
            "guard": self._guarding.to_plain() if self._guarding else None,
        }

    def load(self, plain: Mapping[str, Any], model: nn.Module) -> None:
        """Take over the state that ``to_plain`` gave, for a model that has its widths already.

        Raises:
            ValueError: if it is damaged, or was written by a version that this one does not know.
        """
        version = plain.get("version") if isinstance(plain, Mapping) else None
        if version != VERSION:
            raise ValueError(
                f"the checkpoint's pruning state has version {version!r}, this release reads {VERSION}: "
                "resume with the release that wrote it"
            )
        try:
            self._take_over(plain, model)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint's pruning state cannot be read ({type(error).__name__}: {error}): it is damaged, or "
                "written by something else. Resume from another checkpoint, or load only the model, with load_pruned"
            ) from error

    def _take_over(self, plain: Mapping[str, Any], model: nn.Module) -> None:
        """Everything is read before anything is taken over."""
        if plain["graph"] is None:
            return
        record = Record.from_plain(plain["record"])
        pruner = Pruner(model, graph_from_plain(plain["graph"]), self.options, record)
        # Sums of another criterion have another unit; the next event waits for its own.
        scores = plain["scores"] if plain["criterion"] == repr(self.options.criterion) else {}
        step, length, pending = plain["step"], plain["length"], plain["pending"]
        self.report.load(plain["report"])
        if self._guarding and plain["guard"]:
            self._guarding.load(plain["guard"])
        self._pruner, self._scores = pruner, scores
        self._step, self._length, self._pending = step, length, pending
