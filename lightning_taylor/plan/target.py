"""How much of the dense model may remain: the asked-for end of a pruning.

Two kinds of resources: FLOPs, parameters and channels follow from the widths and are exact integers; latency and
memory have to be measured, on this machine, by a :class:`lightning_taylor.measure.meter.Meter`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Literal

from lightning_taylor.plan.cost import Cost
from lightning_taylor.utilities.checks import is_number

__all__ = ["Curve", "Target"]

Curve = Literal["cubic", "linear"]
"""How the remaining fraction falls from 1 to the target: fast first (cubic) or evenly (linear)."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Target:
    """How much may remain, each as a fraction of the dense model in (0, 1]; all that are given must hold.

    Args:
        flops: share of the FLOPs per example (2 per multiply-add) that may remain.
        params: share of the parameters that may remain.
        channels: share of the removable channels that may remain; those of frozen layers count on neither side.
        latency: share of the seconds of one inference that may remain, measured on this machine at the batch size
            trained with. How near it lands depends on the machine's noise: it is reported, not promised.
        memory: share of the peak bytes alive in one inference that may remain, weights included, at the batch size
            trained with.

    Raises:
        ValueError: if none is given, or one is not a number in (0, 1].

    Example:
        >>> Target(flops=0.5, latency=0.7)
        Target(flops=0.5, latency=0.7)
        >>> Target(flops=0.5, params=0.4).asked
        {'flops': 0.5, 'params': 0.4}
        >>> Target.of(0.5)
        Target(flops=0.5)
    """

    flops: float | None = None
    params: float | None = None
    channels: float | None = None
    latency: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        if not self.asked:
            names = ", ".join(f"{field.name}=" for field in fields(self))
            raise ValueError(f"a target needs at least one of {names}, e.g. Target(flops=0.5)")
        for name, fraction in self.asked.items():
            if not is_number(fraction):
                raise ValueError(
                    f"target {name}={fraction!r} is not a number: write the fraction of the dense model that may "
                    "remain, such as 0.5"
                )
            if not 0 < fraction <= 1:
                raise ValueError(
                    f"target {name}={fraction} is not a fraction of the dense model in (0, 1]{_hint(fraction)}"
                )

    def __repr__(self) -> str:
        return f"Target({', '.join(f'{name}={fraction}' for name, fraction in self.asked.items())})"

    @classmethod
    def of(cls, target: float | Target) -> Target:
        """A target as it is; a bare number as the fraction of the FLOPs that may remain."""
        return target if isinstance(target, Target) else cls(flops=target)

    @property
    def asked(self) -> dict[str, float]:
        """Resource name -> fraction, for those that are given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: fraction for name, fraction in given.items() if fraction is not None}

    @property
    def exact(self) -> Target | None:
        """The part that follows from the widths alone; None if only measured resources are asked for.

        Example:
            >>> Target(flops=0.5, latency=0.7).exact
            Target(flops=0.5)
        """
        parts = {name: fraction for name, fraction in self.asked.items() if name not in _MEASURED}
        return Target(**parts) if parts else None

    @property
    def to_measure(self) -> tuple[str, ...]:
        """The asked resources that only a measurement can tell.

        Example:
            >>> Target(flops=0.5, latency=0.7).to_measure
            ('latency',)
        """
        return tuple(name for name in self.asked if name in _MEASURED)

    def limits(self, dense: Cost) -> dict[str, int]:
        """Exact resource name -> the most of it that may remain, in the cost's own units, rounded down."""
        # By decimals, as the user wrote them: as floats, 0.29 * 100 is 28.999999999999996 and loses a channel.
        return {
            name: math.floor(Fraction(str(fraction)) * getattr(dense, name))
            for name, fraction in self.asked.items()
            if name not in _MEASURED
        }

    def met(self, cost: Cost, dense: Cost, measured: Mapping[str, float] | None = None) -> bool:
        """Whether a model meets every part of the target.

        Args:
            cost: what the model costs.
            dense: what the dense model costs.
            measured: "latency" and "memory" as fractions of the dense model's; a part that is asked for and not
                given here is not met.

        Example:
            >>> half, whole = Cost(50, 50, 5), Cost(100, 100, 10)
            >>> Target(flops=0.5, latency=0.7).met(half, whole)
            False
            >>> Target(flops=0.5, latency=0.7).met(half, whole, {"latency": 0.65})
            True
        """
        return not self.missed(cost, dense, measured)

    def missed(self, cost: Cost, dense: Cost, measured: Mapping[str, float] | None = None) -> dict[str, float]:
        """The parts that are not met -> the fraction that a model has of them; nan if it was not measured."""
        limits = self.limits(dense)
        has = {**dict.fromkeys(self.to_measure, math.nan), **self.achieved(cost, dense, measured)}
        return {
            name: has[name]
            for name, fraction in self.asked.items()
            if not (getattr(cost, name) <= limits[name] if name in limits else has[name] <= fraction)
        }

    def achieved(self, cost: Cost, dense: Cost, measured: Mapping[str, float] | None = None) -> dict[str, float]:
        """Resource name -> the fraction that a model has of the dense one, for those asked and known."""
        known = {name: getattr(cost, name) / max(1, getattr(dense, name)) for name in self.limits(dense)}
        return {**known, **{name: (measured or {})[name] for name in self.to_measure if name in (measured or {})}}

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
            Target(flops=0.5625)
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress}")
        if not isinstance(curve, str) or curve not in _EXPONENT:
            raise ValueError(f"curve must be one of {', '.join(map(repr, _EXPONENT))}, got {curve!r}")
        share = (1 - progress) ** _EXPONENT[curve]
        return Target(**{name: min(1.0, t + (1 - t) * share) for name, t in self.asked.items()})


_EXPONENT = {"cubic": 3, "linear": 1}
_MEASURED = ("latency", "memory")


def _hint(fraction: float) -> str:
    if 1 < fraction <= 100:
        return (
            f": for {fraction:g} percent write {fraction / 100:g}; "
            f"to become {fraction:g} times smaller write {1 / fraction:.3g}"
        )
    if fraction == 0:
        return ": nothing would remain; name the smallest model that is still of use, e.g. 0.1"
    return ": 1 leaves the model as it is, 0.5 halves it"
