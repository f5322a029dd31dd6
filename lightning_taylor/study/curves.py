"""The paper's Figs. 4 to 6 for one's own network: a metric against what remains, for a list of criteria and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_taylor.utilities.atomic import write_file
from lightning_taylor.utilities.plain import from_plain, to_plain

__all__ = [
    "DENSE",
    "Curve",
    "CurveFile",
    "CurvePoint",
]

DENSE = "dense"
"""The name, among the criteria, of the network that takes the same steps and keeps all of its channels."""


@dataclass(frozen=True)
class CurvePoint:
    """One measurement in the course of a pruning.

    Attributes:
        step: optimizer steps before it.
        channels: of those that can be removed, the fraction that is left.
        flops: what is left of the FLOPs, as a fraction.
        params: what is left of the parameters, as a fraction.
        metric: on the validation data, in the metric's own units.
    """

    step: int
    channels: float
    flops: float
    params: float
    metric: float


@dataclass(frozen=True)
class Curve:
    """One run: a criterion, a seed, and what was measured from the dense network to the end of the fit.

    Example:
        >>> dense, half = CurvePoint(0, 1.0, 1.0, 1.0, metric=0.9), CurvePoint(50, 0.7, 0.5, 0.6, metric=0.8)
        >>> round(Curve("Taylor", 0, (dense, half)).at(0.75), 3)
        0.85
    """

    criterion: str
    seed: int
    points: tuple[CurvePoint, ...]

    @property
    def last(self) -> CurvePoint:
        """The end of the fit."""
        return self.points[-1]

    def at(self, flops: float) -> float | None:
        """The metric where this fraction of the FLOPs was left, on a straight line between two measured points.

        Returns:
            The first time that the network was so small; None if it never was.
        """
        for a, b in pairwise(self.points):
            if a.flops == flops:
                return a.metric
            if a.flops > flops >= b.flops:
                return a.metric + (a.flops - flops) / (a.flops - b.flops) * (b.metric - a.metric)
        return None


@dataclass(frozen=True)
class _Line(Curve):
    """A line of a file: the curve, and what it was measured with."""

    settings: Mapping[str, Any]

    @property
    def curve(self) -> Curve:
        return Curve(self.criterion, self.seed, self.points)


class CurveFile:
    """Finished runs, one JSON line each, and the settings that they were made with.

    Args:
        path: of the file; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        try:
            self._lines = [from_plain(_Line, json.loads(line)) for line in text.splitlines()]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path} holds no curves ({error}): delete it, or give another folder") from error
        self.curves = [line.curve for line in self._lines]

    def setting(self, name: str) -> Any:
        """One of the settings of the runs in the file; None if there is no run."""
        return self._lines[0].settings.get(name) if self._lines else None

    def check(self, settings: Mapping[str, Any], checkpoints: Mapping[int, str]) -> None:
        """Refuse to go on with other settings than those of the runs in the file.

        Args:
            settings: name -> plain value; the same for all runs.
            checkpoints: seed -> what tells the contents of its checkpoint.

        Raises:
            ValueError: naming each setting that differs, and what it was.
        """
        for line in self._lines:
            was, seed = line.settings, line.seed
            now = {**settings, "checkpoint": checkpoints.get(seed, was["checkpoint"])}
            changed = [
                f"{name}={now.get(name)}, which was {was.get(name)}"
                for name in dict.fromkeys([*now, *was])
                if now.get(name) != was.get(name)
            ]
            if changed:
                raise ValueError(
                    f"{self.path} was measured with other settings (seed {seed}: {'; '.join(changed)}): delete it, or "
                    "give another folder with --out"
                )

    def add(self, curve: Curve, settings: Mapping[str, Any]) -> None:
        """Write a finished run, whole or not at all."""
        self.curves.append(curve)
        self._lines.append(_Line(**vars(curve), settings=dict(settings)))
        write_file(self.path, "".join(json.dumps(to_plain(line)) + "\n" for line in self._lines))
