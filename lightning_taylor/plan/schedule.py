"""When channels are removed, and how many at each event.

A step is one optimizer step, counted from 1 since the fit began: an event at step 10 comes after the tenth.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lightning_taylor.plan.target import Curve, Target
from lightning_taylor.utilities.checks import check_whole

__all__ = ["Demand", "Gradual", "Iterative", "OneShot", "Schedule", "default_schedule"]

_EVENTS = 25  # what the default schedule aims at
_SHORTEST = 2  # one step to score on, one to recover


@dataclass(frozen=True)
class Demand:
    """What one event has to do.

    Attributes:
        target: what may remain after the event, as fractions of the dense model.
        channels: if given, remove this many channels and no more, and stop early once the target is met;
            if None, remove until the target is met.
        goal: if given, the target of the whole fit: the event does not go needlessly far below it.
    """

    target: Target
    channels: int | None = None
    goal: Target | None = None


class Schedule(ABC):
    """When events happen and what each one demands."""

    @abstractmethod
    def is_event(self, step: int) -> bool:
        """Whether channels are removed after this many optimizer steps."""

    @abstractmethod
    def demand(self, step: int, target: Target) -> Demand:
        """What the event at this step has to do on the way to the target.

        Raises:
            ValueError: if there is no event at this step.
        """

    @abstractmethod
    def check(self, total_steps: int) -> None:
        """Check that a fit of this many optimizer steps is long enough for the schedule.

        Raises:
            ValueError: with the number of steps that are needed.
        """

    def events(self, total_steps: int) -> list[int]:
        """The steps of all events in a fit of this many optimizer steps, in order."""
        return [step for step in range(1, total_steps + 1) if self.is_event(step)]

    def _require_event(self, step: int) -> None:
        if not self.is_event(step):
            raise ValueError(f"{self} has no event at step {step}; ask is_event(step) first")


@dataclass(frozen=True)
class Iterative(Schedule):
    """The paper's loop: remove a few channels, fine-tune, and again, until the target is met.

    Args:
        every_n_steps: optimizer steps from one event to the next, at least 1.
        channels_per_event: channels that go at each event, at least 1; the paper's 1 takes long.
        start_step: optimizer steps before the first interval begins; the first event is ``every_n_steps`` later.

    Source: Molchanov et al. 2017, section 2 (Fig. 1) and section 3.

    Example:
        >>> Iterative(every_n_steps=10, channels_per_event=1).events(35)
        [10, 20, 30]
    """

    every_n_steps: int
    channels_per_event: int
    start_step: int = 0

    def __post_init__(self) -> None:
        check_whole("every_n_steps", self.every_n_steps, 1)
        check_whole("channels_per_event", self.channels_per_event, 1)
        check_whole("start_step", self.start_step, 0)

    def is_event(self, step: int) -> bool:
        """Whether channels are removed after this many optimizer steps; nothing happens once the target is met."""
        return step > self.start_step and (step - self.start_step) % self.every_n_steps == 0

    def demand(self, step: int, target: Target) -> Demand:
        """A number of channels, but not below the target."""
        self._require_event(step)
        return Demand(target, self.channels_per_event)

    def check(self, total_steps: int) -> None:
        """Check that there is at least one event; how many the target takes depends on the scores."""
        _check_reaches(self, self.start_step + self.every_n_steps, total_steps, "for a first event")


@dataclass(frozen=True)
class Gradual(Schedule):
    """Towards the target along a curve, at regular steps; the event at ``end_step`` reaches it.

    Args:
        every_n_steps: optimizer steps from one event to the next, at least 1; the last interval may be shorter.
        start_step: optimizer steps in which the model stays dense; the first event is ``every_n_steps`` later.
        end_step: optimizer step of the last event, which reaches the target; later ones fine-tune.
        curve: how what remains falls in between: "cubic" removes most at the beginning, "linear" the same share each
            time.

    Example:
        >>> schedule = Gradual(every_n_steps=10, start_step=20, end_step=45)
        >>> schedule.events(100)
        [30, 40, 45]
        >>> [round(schedule.demand(step, Target(flops=0.5)).target.flops, 3) for step in schedule.events(100)]
        [0.608, 0.504, 0.5]
    """

    every_n_steps: int
    start_step: int
    end_step: int
    curve: Curve = "cubic"

    def __post_init__(self) -> None:
        check_whole("every_n_steps", self.every_n_steps, 1)
        check_whole("start_step", self.start_step, 0)
        check_whole("end_step", self.end_step, 1)
        if self.end_step <= self.start_step:
            raise ValueError(f"end_step={self.end_step} must be larger than start_step={self.start_step}")
        Target(flops=1.0).interpolate(0.0, self.curve)

    def is_event(self, step: int) -> bool:
        """Whether channels are removed after this many optimizer steps."""
        if not self.start_step < step <= self.end_step:
            return False
        return step == self.end_step or (step - self.start_step) % self.every_n_steps == 0

    def demand(self, step: int, target: Target) -> Demand:
        """At most the fractions that the curve allows at this step; at ``end_step`` exactly the target."""
        self._require_event(step)
        progress = (step - self.start_step) / (self.end_step - self.start_step)
        return Demand(target.interpolate(progress, self.curve), goal=target)

    def check(self, total_steps: int) -> None:
        """Check that the fit is long enough to reach ``end_step``, and with it the target."""
        _check_reaches(self, self.end_step, total_steps, "to reach the target")


@dataclass(frozen=True)
class OneShot(Schedule):
    """Everything at one event.

    Args:
        step: the optimizer step after which the model is pruned to the target, at least 1.

    Example:
        >>> OneShot(step=3).events(10)
        [3]
    """

    step: int

    def __post_init__(self) -> None:
        check_whole("step", self.step, 1)

    def is_event(self, step: int) -> bool:
        """Whether this is the one step."""
        return step == self.step

    def demand(self, step: int, target: Target) -> Demand:
        """The target itself."""
        self._require_event(step)
        return Demand(target, goal=target)

    def check(self, total_steps: int) -> None:
        """Check that the fit is long enough to get to the one step."""
        _check_reaches(self, self.step, total_steps, "to reach the target")


def default_schedule(total_steps: float) -> Gradual:
    """A cubic schedule over a fit's own length: a tenth dense, events until two thirds, the rest to fine-tune.

    About 25 events where the fit is long enough, down to one at every step where it is short.

    Args:
        total_steps: optimizer steps of the whole fit, as ``trainer.estimated_stepping_batches`` gives them.

    Raises:
        ValueError: if the length is unknown (infinite or negative) or too short for an event and a step after it.

    Example:
        >>> default_schedule(3000)
        Gradual(every_n_steps=68, start_step=300, end_step=2000, curve='cubic')
        >>> default_schedule(2)
        Gradual(every_n_steps=1, start_step=0, end_step=1, curve='cubic')
    """
    if not math.isfinite(total_steps) or total_steps < 0:
        raise ValueError(
            f"the fit's length is unknown ({total_steps} steps), so no schedule can be laid over it: "
            "set max_steps or max_epochs, or pass schedule=Gradual(...), Iterative(...) or OneShot(...)"
        )
    steps = int(total_steps)
    if steps < _SHORTEST:
        raise ValueError(
            f"a fit of {steps} optimizer steps is too short to prune in: it takes at least {_SHORTEST}, "
            "one to score the channels and one to fine-tune what is left"
        )
    start, end = steps // 10, 2 * steps // 3
    return Gradual(max(1, round((end - start) / _EVENTS)), start, end)


def _check_reaches(schedule: Schedule, needed: int, total_steps: int, purpose: str) -> None:
    if total_steps < needed:
        raise ValueError(
            f"{schedule} needs {needed} optimizer steps {purpose}, but the fit has {total_steps}: "
            "train longer, choose an earlier schedule, or leave it out to have one laid over the fit"
        )
