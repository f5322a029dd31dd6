"""How much of the dense model may remain: the asked-for end of a pruning."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Literal

from lightning_taylor.plan.cost import Cost

__all__ = ["Curve", "Target"]

Curve = Literal["cubic", "linear"]
"""How the remaining fraction falls from 1 to the target: fast first (cubic) or evenly (linear)."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much may remain, each as a fraction of the dense model in (0, 1]; all that are given must hold.

    Args:
        flops: FLOPs per example that may remain, 2 per multiply-add.
        params: parameters that may remain.
        channels: removable channels that may remain; channels of frozen layers count on neither side.

    Raises:
        ValueError: if none is given, or one lies outside (0, 1].

    Example:
        >>> Target(flops=0.5, params=0.4).asked
        {'flops': 0.5, 'params': 0.4}
        >>> Target.of(0.5)
        Target(flops=0.5, params=None, channels=None)
    """

    flops: float | None = None
    params: float | None = None
    channels: float | None = None

    def __post_init__(self) -> None:
        if not self.asked:
            raise ValueError("a target needs at least one of flops=, params=, channels=, e.g. Target(flops=0.5)")
        for name, fraction in self.asked.items():
            if not 0 < fraction <= 1:
                raise ValueError(
                    f"target {name}={fraction} is not a fraction of the dense model in (0, 1]{_hint(fraction)}"
                )

    @classmethod
    def of(cls, target: float | Target) -> Target:
        """A target as it is; a bare number as the fraction of the FLOPs that may remain."""
        return target if isinstance(target, Target) else cls(flops=target)

    @property
    def asked(self) -> dict[str, float]:
        """Resource name -> fraction, for those that are given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: fraction for name, fraction in given.items() if fraction is not None}

    def limits(self, dense: Cost) -> dict[str, int]:
        """Resource name -> the most of it that may remain, in the cost's own units, rounded down."""
        # By decimals, as the user wrote them: as floats, 0.29 * 100 is 28.999999999999996 and loses a channel.
        return {
            name: math.floor(Fraction(str(fraction)) * getattr(dense, name)) for name, fraction in self.asked.items()
        }

    def met(self, cost: Cost, dense: Cost) -> bool:
        """Whether a model of this cost meets every part of the target."""
        return all(getattr(cost, name) <= limit for name, limit in self.limits(dense).items())

    def achieved(self, cost: Cost, dense: Cost) -> dict[str, float]:
        """Resource name -> the fraction that a model of this cost has of the dense one, for those asked."""
        return {name: getattr(cost, name) / max(1, getattr(dense, name)) for name in self.asked}

    def interpolate(self, progress: float, curve: Curve = "cubic") -> Target:
        r"""What may remain on the way from the dense model to this target.

        .. math::  r(p) = t + (1 - t) (1 - p)^k, \quad k = 3 \text{ (cubic) or } 1 \text{ (linear)}

        Exactly 1 at progress 0 and exactly the target at progress 1.

        Args:
            progress: in [0, 1].
            curve: ``"cubic"`` removes most at the beginning, ``"linear"`` the same share each time.

        Raises:
            ValueError: if the progress lies outside its range or the curve is unknown.

        Source: Zhu and Gupta 2017, arXiv 1710.01878, section 3 (the cubic curve, there for sparsity).

        Example:
            >>> Target(flops=0.5).interpolate(0.5)
            Target(flops=0.5625, params=None, channels=None)
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress}")
        if curve not in _EXPONENT:
            raise ValueError(f"curve must be one of {', '.join(map(repr, _EXPONENT))}, got {curve!r}")
        share = (1 - progress) ** _EXPONENT[curve]
        return Target(**{name: min(1.0, t + (1 - t) * share) for name, t in self.asked.items()})


_EXPONENT = {"cubic": 3, "linear": 1}


def _hint(fraction: float) -> str:
    if 1 < fraction <= 100:
        return (
            f": for {fraction:g} percent write {fraction / 100:g}; "
            f"to become {fraction:g} times smaller write {1 / fraction:.3g}"
        )
    if fraction == 0:
        return ": nothing would remain; name the smallest model that is still of use, e.g. 0.1"
    return ": 1 leaves the model as it is, 0.5 halves it"
