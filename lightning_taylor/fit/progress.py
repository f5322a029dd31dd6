"""When channels go in a fit: the schedule that is laid over it, the steps that were taken, the event that is due."""

from __future__ import annotations

import math
from typing import final

from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.pace import Pace, Standing
from lightning_taylor.plan.schedule import Schedule, default_schedule
from lightning_taylor.plan.score_batches import ScoreBatches, Window, window_at

__all__ = [
    "ScheduleProgress",
]

_CLOSE = 0.01  # of a length


@final
class ScheduleProgress:
    """One fit's optimizer steps, and the events among them.

    Args:
        step: optimizer steps of this fit so far; more than none in a resumed one.
        due: the step of the event that has to happen, or has to wait; None if there is none.
        length: of a resumed fit, when its schedule was laid; None before that.
        pace: of a resumed fit in manual optimization.

    Attributes:
        schedule: of this fit, in steps; None before it is laid, and in a fit that has nothing left to remove.
        skips_first_batch: whether the first batch goes to the trace, and is not scored.

    Example:
        >>> from lightning_taylor.plan import OneShot
        >>> progress = ScheduleProgress()
        >>> progress.set_schedule(OneShot(at=0.2), FitLength(steps=10))
        >>> [progress.advance() for _ in range(3)], progress.due
        ([None, 2, 2], 2)
    """

    def __init__(
        self, step: int = 0, due: int | None = None, length: FitLength | None = None, pace: Pace | None = None
    ) -> None:
        self.schedule: Schedule | None = None
        self.step, self.due, self.length, self.pace = step, due, length, pace
        self.skips_first_batch = False
        self._window: Window | None = None

    def set_schedule(self, schedule: Schedule | None, remaining: FitLength) -> None:
        """Fix the events of this fit; a resumed one keeps the length that it began with.

        Args:
            schedule: the user's; by default a cubic one over the length of the fit.
            remaining: optimizer steps to come, and those of an epoch; infinite if nobody knows.

        Raises:
            ValueError: if the fit is too short for the schedule, or of unknown length and the schedule depends on it.
        """
        whole = FitLength(self.step + remaining.steps, remaining.epoch)
        if self.length is None:
            self.length = whole
        self.schedule, self._window = _laid(schedule, self.length), None
        if self._is_past and whole.steps > self.length.steps:
            # A fit that was over goes on: for a smaller target.
            self.length, self.schedule = whole, _laid(schedule, whole)
        if math.isfinite(steps := max(self.length.steps, whole.steps)):
            self.schedule.check(int(steps))
        if self.due is not None and not self.schedule.is_event(self.due):
            self._catch_up()  # it was of another schedule

    @property
    def _is_past(self) -> bool:
        """Whether no event is left in a fit that has had steps."""
        assert self.schedule is not None
        assert self.length is not None
        if not self.step or self.due is not None or not math.isfinite(self.length.steps):
            return False
        return not any(map(self.schedule.is_event, range(self.step + 1, int(self.length.steps) + 1)))

    def follow_pace(self, schedule: Schedule | None, standing: Standing) -> None:
        """Lay the schedule over as many steps as the fit seems to have.

        For manual optimization, where nobody knows before how many batches a step takes.

        Args:
            schedule: as for ``set_schedule``.
            standing: of the fit after the latest step.
        """
        if self.schedule is None or self.length is None or self.due is not None:
            return
        if self.pace is None:
            self.pace = Pace(self.step, standing)
        length = self.pace.length(self.step, standing)
        if length is None or _is_close(length, self.length):
            return
        try:
            laid = _laid(schedule, length)
        except ValueError:  # after a long pause between the first steps the fit seems to have hardly any
            return
        self.length, self.schedule, self._window = length, laid, None
        if self._is_past:
            self._catch_up()

    def _catch_up(self) -> None:
        """The latest event that the schedule has had by now is due."""
        assert self.schedule is not None
        self.due = max(self.schedule.events(self.step), default=None)

    @property
    def needs_first_batch(self) -> bool:
        """Whether the schedule's only event comes right after the first step."""
        assert self.schedule is not None
        assert self.length is not None
        later = range(2, int(min(self.length.steps, 10**6)) + 1)
        return self.schedule.is_event(1) and not any(self.schedule.is_event(step) for step in later)

    def skip_first_batch(self) -> None:
        """The first batch goes to the trace, and is not scored.

        Raises:
            ValueError: if the schedule's only event comes right after it.
        """
        assert self.schedule is not None
        assert self.length is not None
        self.skips_first_batch = True
        if self.needs_first_batch:
            raise ValueError(
                f"{self.schedule} has its only event after the first step, when no batch has been scored; set "
                "example_inputs= (or example_input_array on the module), or move the event to step 2 or later"
            )

    def scores_next(self, chosen: ScoreBatches | None) -> bool:
        """Whether the batches of the optimizer step that comes next are to be scored; none are if no event follows.

        Args:
            chosen: which steps before an event are; None for all.
        """
        if self.schedule is None or self.due is not None:
            return True  # what an event waits for may be a score
        step = self.step + 1
        if self._window is None or step not in self._window:
            self._window = window_at(self.schedule, step, self.length.steps if self.length else float("inf"))
        return chosen.takes(step, self._window) if chosen else self._window.event

    def advance(self) -> int | None:
        """An optimizer step was taken.

        Returns:
            The step of the event that is due now, from this step or an earlier one.
        """
        self.step += 1
        scored = self.step > 1 or not self.skips_first_batch
        if scored and self.schedule and self.schedule.is_event(self.step):
            self.due = self.step
        return self.due


def _laid(schedule: Schedule | None, length: FitLength) -> Schedule:
    return schedule.in_steps(length) if schedule else default_schedule(length.steps)


def _is_close(length: FitLength, other: FitLength) -> bool:
    """Whether two lengths differ so little that no moment in a fit moves by more than that."""
    pairs = ((length.steps, other.steps), (length.epoch, other.epoch))
    return all(a == b or abs(a - b) < max(1, _CLOSE * b) for a, b in pairs)
