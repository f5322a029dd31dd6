"""How long a fit is, and moments in it that are given as a share of that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_taylor.utilities.checks import check_whole, is_number

__all__ = ["FitLength", "Unit", "check_moment", "check_unit"]

Unit = Literal["fit", "epochs"]
"""Of a moment that is not given in steps: fractions of the fit's length, or epochs."""

_ROUNDING = 1e-6  # of a step: two thirds of 3 steps are 2


@dataclass(frozen=True)
class FitLength:
    """The length of a fit, in optimizer steps.

    Attributes:
        steps: of the whole fit; infinite if nobody knows.
        epoch: of one epoch; infinite if nobody knows.
    """

    steps: float
    epoch: float = math.inf

    def share(self, value: float | None, unit: Unit = "fit", schedule: object = "the schedule") -> int:
        """Turn a fraction of the fit, or a number of epochs, into whole steps, rounded down.

        Args:
            value: the fraction, or the number of epochs.
            unit: which of both it is.
            schedule: whose moment it is, for the error.

        Raises:
            ValueError: if the length that it depends on is unknown.

        Example:
            >>> FitLength(steps=90, epoch=30).share(0.5), FitLength(steps=90, epoch=30).share(1.5, "epochs")
            (45, 45)
        """
        assert value is not None
        whole = self.steps if unit == "fit" else self.epoch
        if not math.isfinite(whole) or whole < 0:
            what, way = ("fit's", "set max_steps or max_epochs") if unit == "fit" else ("epochs'", "use unit='fit'")
            raise ValueError(f"the {what} length is unknown, and {schedule} depends on it: {way}, or give it in steps")
        return int(value * whole + _ROUNDING)


def check_unit(unit: object) -> None:
    """Raise ValueError unless this is the name of a unit."""
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be one of {', '.join(map(repr, get_args(Unit)))}, got {unit!r}")


def check_moment(schedule: Any, steps: str, share: str, *, at_least: int = 0, unset: int | None = None) -> None:
    """Check a moment that a schedule has in steps, or as a share, or not at all.

    Args:
        schedule: with a ``unit``.
        steps: the name of its field for the number of steps.
        share: the name of its field for the share.
        at_least: the least number of steps.
        unset: what the number of steps is where nobody set it.

    Raises:
        ValueError: if both are given, or one is outside of its range.
    """
    count, value = getattr(schedule, steps), getattr(schedule, share)
    if count is not None and count != unset:
        check_whole(steps, count, at_least)
        if value is not None:
            raise ValueError(f"{steps}={count} and {share}={value:g} say the same thing twice: leave one of them out")
    if value is None:
        return
    most = 1 if schedule.unit == "fit" else math.inf
    if not is_number(value) or not 0 <= value <= most:
        wanted = "a fraction of the fit, from 0 to 1" if most == 1 else "a number of epochs of at least 0"
        hint = "; for epochs add unit='epochs'" if most == 1 and is_number(value) and value > 1 else ""
        raise ValueError(f"{share} must be {wanted}, got {value!r}{hint}")
