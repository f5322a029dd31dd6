"""When channels are removed, and how many at each event.

A step is one optimizer step, counted from 1 since the fit began: an event at step 10 comes after the tenth. A schedule
may say when in fractions of the fit or in epochs instead; ``in_steps`` then lays it over a fit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

from lightning_taylor.plan.fit_length import FitLength, Unit, check_moment, check_unit
from lightning_taylor.plan.target import Curve, Target
from lightning_taylor.utilities.checks import check_whole

__all__ = ["Demand", "Gradual", "Iterative", "OneShot", "Schedule", "default_schedule"]

_EVENTS = 25  # of a Gradual that does not say how often
_START, _END = 0.1, 2 / 3  # of the fit, for a Gradual that does not say when
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

    def in_steps(self, length: FitLength) -> Schedule:
        """Lay the schedule over a fit: the same one with every moment as a number of optimizer steps.

        Args:
            length: of the fit.

        Raises:
            ValueError: if a moment depends on a length that nobody knows.
        """
        return self

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

    def _steps(self, *names: str) -> tuple[int, ...]:
        """Return the values of these fields, which hold steps once the schedule is laid over a fit."""
        values = tuple(getattr(self, name) for name in names)
        if None in values:
            raise ValueError(f"{self} depends on the length of the fit: lay it over one, with in_steps(FitLength(...))")
        return values

    def _shown(self) -> str:
        """Write it as it was made: without the fields that nobody set."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        shown = [f"{k}={v!r}" for k, v in values.items() if v is not None and (k, v) != ("unit", "fit")]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Iterative(Schedule):
    """The paper's loop: remove a few channels, fine-tune, and again, until the target is met.

    Args:
        every_n_steps: optimizer steps from one event to the next, at least 1.
        channels_per_event: channels that go at each event, at least 1; the paper's 1 takes long.
        start_step: optimizer steps before the first interval begins; the first event is ``every_n_steps`` later.
        every: in the place of ``every_n_steps``, as a fraction of the fit's length, or in epochs.
        start: in the place of ``start_step``, likewise.
        unit: of ``every`` and ``start``: "fit" for fractions of the fit's length in [0, 1], or "epochs".

    Source: Molchanov et al. 2017, section 2 (Fig. 1) and section 3.

    Example:
        >>> Iterative(every_n_steps=10, channels_per_event=1).events(35)
        [10, 20, 30]
        >>> Iterative(every=2, unit="epochs").in_steps(FitLength(steps=100, epoch=20)).events(100)
        [40, 80]
    """

    every_n_steps: int | None = None
    channels_per_event: int = 1
    start_step: int = 0
    every: float | None = None
    start: float | None = None
    unit: Unit = "fit"

    def __post_init__(self) -> None:
        check_unit(self.unit)
        check_moment(self, "every_n_steps", "every", at_least=1)
        check_whole("channels_per_event", self.channels_per_event, 1)
        check_whole("start_step", self.start_step, 0)
        check_moment(self, "start_step", "start", unset=0)
        if self.every_n_steps is None and self.every is None:
            raise ValueError("Iterative needs every_n_steps, or every as a fraction of the fit or in epochs")

    def __repr__(self) -> str:
        return self._shown()

    def in_steps(self, length: FitLength) -> Iterative:
        """Lay the schedule over a fit: with ``every`` and ``start`` as numbers of optimizer steps."""
        every = self.every_n_steps or max(1, length.share(self.every, self.unit, self))
        start = self.start_step if self.start is None else length.share(self.start, self.unit, self)
        return Iterative(every, self.channels_per_event, start)

    def is_event(self, step: int) -> bool:
        """Whether channels are removed after this many optimizer steps; nothing happens once the target is met."""
        every, start = self._steps("every_n_steps", "start_step")
        return step > start and (step - start) % every == 0

    def demand(self, step: int, target: Target) -> Demand:
        """A number of channels, but not below the target."""
        self._require_event(step)
        return Demand(target, self.channels_per_event)

    def check(self, total_steps: int) -> None:
        """Check that there is at least one event; how many the target takes depends on the scores."""
        _check_reaches(self, sum(self._steps("every_n_steps", "start_step")), total_steps, "for a first event")


@dataclass(frozen=True, repr=False)
class Gradual(Schedule):
    """Towards the target along a curve, at regular steps; the last event reaches it.

    Each of the three moments is given in optimizer steps, or as a fraction of the fit's length, or in epochs. What is
    left out depends on the length of the fit: a tenth of it dense, about 25 events, the last one after two thirds.

    Args:
        every_n_steps: optimizer steps from one event to the next, at least 1; the last interval may be shorter.
        start_step: optimizer steps in which the model stays dense; the first event is ``every_n_steps`` later.
        end_step: optimizer step of the last event, which reaches the target; later ones fine-tune.
        curve: how what remains falls in between: "cubic" removes most at the beginning, "linear" the same share each
            time.
        every: in the place of ``every_n_steps``, as a fraction of the fit's length, or in epochs.
        start: in the place of ``start_step``, likewise.
        end: in the place of ``end_step``, likewise.
        unit: of ``every``, ``start`` and ``end``: "fit" for fractions of the fit's length in [0, 1], or "epochs".

    Example:
        >>> schedule = Gradual(every_n_steps=10, start_step=20, end_step=45)
        >>> schedule.events(100)
        [30, 40, 45]
        >>> [round(schedule.demand(step, Target(flops=0.5)).target.flops, 3) for step in schedule.events(100)]
        [0.608, 0.504, 0.5]
        >>> Gradual(every=0.02, start=0.1, end=0.66).in_steps(FitLength(steps=1000))
        Gradual(every_n_steps=20, start_step=100, end_step=660, curve='cubic')
    """

    every_n_steps: int | None = None
    start_step: int | None = None
    end_step: int | None = None
    curve: Curve = "cubic"
    every: float | None = None
    start: float | None = None
    end: float | None = None
    unit: Unit = "fit"

    def __post_init__(self) -> None:
        check_unit(self.unit)
        check_moment(self, "every_n_steps", "every", at_least=1)
        check_moment(self, "start_step", "start")
        check_moment(self, "end_step", "end", at_least=1)
        for first, last in (("start_step", "end_step"), ("start", "end")):
            early, late = getattr(self, first), getattr(self, last)
            if early is not None and late is not None and late <= early:
                raise ValueError(f"{last}={late} must be larger than {first}={early}")
        Target(flops=1.0).interpolate(0.0, self.curve)

    def __repr__(self) -> str:
        return self._shown()

    def in_steps(self, length: FitLength) -> Gradual:
        """Lay the schedule over a fit: with every moment as a number of optimizer steps."""
        start, end = self.start_step, self.end_step
        if start is None:
            start = length.share(_START) if self.start is None else length.share(self.start, self.unit, self)
        if end is None:
            end = length.share(_END) if self.end is None else length.share(self.end, self.unit, self)
            end = end if self.start_step is not None else max(end, start + 1)  # both in one step of a short fit
        every = self.every_n_steps
        if every is None:
            every = round((end - start) / _EVENTS) if self.every is None else length.share(self.every, self.unit, self)
        if end <= start:
            raise ValueError(f"{self} starts at step {start} of this fit and ends at step {end}: let it end later")
        return Gradual(max(1, every), start, end, self.curve)

    def is_event(self, step: int) -> bool:
        """Whether channels are removed after this many optimizer steps."""
        every, start, end = self._steps("every_n_steps", "start_step", "end_step")
        return start < step <= end and (step == end or (step - start) % every == 0)

    def demand(self, step: int, target: Target) -> Demand:
        """At most the fractions that the curve allows at this step; at ``end_step`` exactly the target."""
        self._require_event(step)
        start, end = self._steps("start_step", "end_step")
        return Demand(target.interpolate((step - start) / (end - start), self.curve), goal=target)

    def check(self, total_steps: int) -> None:
        """Check that the fit is long enough to reach ``end_step``, and with it the target."""
        _check_reaches(self, self._steps("end_step")[0], total_steps, "to reach the target")


@dataclass(frozen=True, repr=False)
class OneShot(Schedule):
    """Everything at one event.

    Args:
        step: the optimizer step after which the model is pruned to the target, at least 1.
        at: in the place of ``step``, as a fraction of the fit's length, or in epochs.
        unit: of ``at``: "fit" for a fraction of the fit's length in [0, 1], or "epochs".

    Example:
        >>> OneShot(step=3).events(10)
        [3]
        >>> OneShot(at=0.5).in_steps(FitLength(steps=10)).events(10)
        [5]
    """

    step: int | None = None
    at: float | None = None
    unit: Unit = "fit"

    def __post_init__(self) -> None:
        check_unit(self.unit)
        check_moment(self, "step", "at", at_least=1)
        if self.step is None and self.at is None:
            raise ValueError("OneShot needs step, or at as a fraction of the fit or in epochs")

    def __repr__(self) -> str:
        return self._shown()

    def in_steps(self, length: FitLength) -> OneShot:
        """Lay the schedule over a fit: with the moment as a number of optimizer steps."""
        return OneShot(self.step or max(1, length.share(self.at, self.unit, self)))

    def is_event(self, step: int) -> bool:
        """Whether this is the one step."""
        return (step,) == self._steps("step")

    def demand(self, step: int, target: Target) -> Demand:
        """The target itself."""
        self._require_event(step)
        return Demand(target, goal=target)

    def check(self, total_steps: int) -> None:
        """Check that the fit is long enough to get to the one step."""
        _check_reaches(self, self._steps("step")[0], total_steps, "to reach the target")


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
    if total_steps < _SHORTEST:
        raise ValueError(
            f"a fit of {int(total_steps)} optimizer steps is too short to prune in: it takes at least {_SHORTEST}, "
            "one to score the channels and one to fine-tune what is left"
        )
    return Gradual().in_steps(FitLength(total_steps))


def _check_reaches(schedule: Schedule, needed: int, total_steps: int, purpose: str) -> None:
    if total_steps < needed:
        raise ValueError(
            f"{schedule} needs {needed} optimizer steps {purpose}, but the fit has {total_steps}: "
            "train longer, choose an earlier schedule, or leave it out to have one laid over the fit"
        )
