"""Which optimizer steps are scored between two events: not every one has to be.

A window is the steps from behind one event to the next, that one's own step included. What is chosen of it depends on
the schedule and on the step's number alone: it is the same on every rank, and after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_taylor.plan.schedule import Schedule
from lightning_taylor.utilities.checks import check_whole

__all__ = ["DEFAULT", "ScoreBatches", "Scored", "Window", "window_at"]

_HORIZON = 10**6  # steps, of a fit whose length nobody knows


class Window(NamedTuple):
    """The steps from ``after`` on, without it, to ``last``, with it; at whose end is an event, or not."""

    after: int
    last: int
    event: bool

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and self.after < step <= self.last


@dataclass(frozen=True)
class ScoreBatches:
    """A number of optimizer steps that are scored before each event, with all of their accumulated batches.

    The event's own step is always one of them. Where there are fewer steps since the last event, all are scored.

    Args:
        n: how many optimizer steps, at least 1.
        spread: whether they are spread evenly over the steps since the last event, or come right before the next.

    Raises:
        ValueError: for anything else.

    Example:
        >>> window = Window(after=10, last=20, event=True)
        >>> [step for step in range(11, 21) if ScoreBatches(3).takes(step, window)]
        [14, 17, 20]
        >>> [step for step in range(11, 21) if ScoreBatches(3, spread=False).takes(step, window)]
        [18, 19, 20]
    """

    n: int
    spread: bool = True

    def __post_init__(self) -> None:
        check_whole("n", self.n, at_least=1)
        if not isinstance(self.spread, bool):
            raise ValueError(f"spread must be True or False, got {self.spread!r}")

    def takes(self, step: int, window: Window) -> bool:
        """Whether an optimizer step of a window is scored; none is if no event follows."""
        if not window.event:
            return False
        before, length = window.last - step, window.last - window.after
        if not self.spread or length <= self.n:
            return before < self.n
        # The i-th from the end is i * length // n steps before the event; i is the only one that it can be.
        i = -(-before * self.n // length)
        return i * length // self.n == before


Scored = int | ScoreBatches | Literal["all"]
"""How a user may say it: a number is of the last ones before each event."""

DEFAULT = ScoreBatches(32, spread=False)
"""Where the user leaves it open: about where the ranking stands still (notebooks/speed.md)."""


def window_at(schedule: Schedule, step: int, total_steps: float) -> Window:
    """Find the window that an optimizer step lies in.

    Args:
        schedule: in steps.
        step: at least 1.
        total_steps: of the fit; infinite if nobody knows.

    Returns:
        The window; up to the end of the fit, if no event follows.

    Example:
        >>> from lightning_taylor.plan import Iterative
        >>> window_at(Iterative(every_n_steps=10), 15, total_steps=100)
        Window(after=10, last=20, event=True)
        >>> window_at(Iterative(every_n_steps=10), 95, total_steps=98)
        Window(after=90, last=98, event=False)
    """
    after = next((s for s in range(step - 1, 0, -1) if schedule.is_event(s)), 0)
    end = max(step, int(min(total_steps, step + _HORIZON)))
    last = next((s for s in range(step, end + 1) if schedule.is_event(s)), None)
    return Window(after, end if last is None else last, last is not None)
