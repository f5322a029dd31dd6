"""How long a callable takes, and whether another one is really faster.

A single timing on a shared machine says little. Two models are timed in turns, so that drift of the machine meets
both alike; the answer is a ratio with its spread, and where the spread includes 1 it is "no speed-up measured".

Units: seconds of wall time per call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = [
    "Latency",
    "LatencyComparison",
    "compare_latency",
    "measure_latency",
]

_FEW = 20  # below this many pairs, quartiles on one side of 1 are too likely by chance


@dataclass(frozen=True)
class Latency:
    """Wall time of one call, over many.

    Attributes:
        median: in seconds.
        low: first quartile, in seconds.
        high: third quartile, in seconds.
        repeats: number of timed calls.
    """

    median: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median * 1e3:.3g} ms (middle half {self.low * 1e3:.3g} to {self.high * 1e3:.3g})"


@dataclass(frozen=True)
class LatencyComparison:
    """Two models timed in turns.

    Attributes:
        dense: wall time of the first.
        pruned: wall time of the second.
        speedup: median over the pairs of dense time / pruned time; above 1 the pruned one is faster.
        low: lower end of that ratio's spread: its first quartile, or its minimum with fewer than 20 pairs.
        high: upper end: its third quartile, or its maximum with fewer than 20 pairs.
    """

    dense: Latency
    pruned: Latency
    speedup: float
    low: float
    high: float

    @property
    def conclusive(self) -> bool:
        """Whether the spread of the ratio leaves no doubt which of the two is faster."""
        return self.low > 1 or self.high < 1

    @property
    def verdict(self) -> str:
        """The result in words."""
        what = "range" if self.dense.repeats < _FEW else "middle half"
        spread = f"{what} {self.low:.2f} to {self.high:.2f}, {self.dense.repeats} pairs"
        if not self.conclusive:
            return f"no speed-up measured: any difference is lost in the machine's noise ({self.dense.repeats} pairs)"
        if self.speedup < 1:
            return f"{1 / self.speedup:.2f} times slower (ratio {self.speedup:.2f}, {spread})"
        return f"{self.speedup:.2f} times faster ({spread})"

    def to_plain(self) -> dict[str, Any]:
        """The numbers as nested dicts of ints and floats, with the verdict."""
        return {**asdict(self), "conclusive": self.conclusive, "verdict": self.verdict}


def measure_latency(fn: Callable[[], Any], *, warmup: int = 5, repeats: int = 30) -> Latency:
    """Time a callable in inference mode, and wait for the device that its result lies on.

    Args:
        fn: takes nothing, e.g. ``lambda: model(x)``; put the model into evaluation mode before. It has to return
            its tensors (or any nesting of them): they tell which device to wait for.
        warmup: untimed calls before.
        repeats: timed calls.

    Raises:
        ValueError: if ``repeats`` is below 1 or ``warmup`` negative.

    Example:
        >>> measure_latency(lambda: torch.ones(2) + 1, warmup=1, repeats=3).repeats
        3
    """
    _check(warmup, repeats)
    with torch.inference_mode():
        for _ in range(warmup):
            _seconds(fn)
        return _latency([_seconds(fn) for _ in range(repeats)])


def compare_latency(
    dense: Callable[[], Any], pruned: Callable[[], Any], *, warmup: int = 5, repeats: int = 30
) -> LatencyComparison:
    """Time two callables in turns, each pair in the opposite order of the one before.

    A slow drift of the machine, and whatever the first of a pair leaves in the caches for the second, then cancel.
    If both were equally fast, three of four ratios would fall on one side of 1 by chance in less than one of
    twenty comparisons of 20 pairs; with fewer pairs that is too likely, so there all of them have to.

    Args:
        dense: as for ``measure_latency``.
        pruned: as for ``measure_latency``.
        warmup: untimed calls of each before.
        repeats: timed pairs, at least 5.

    Raises:
        ValueError: if ``repeats`` is below 5 or ``warmup`` negative.
    """
    _check(warmup, repeats, fewest=5)
    with torch.inference_mode():
        for _ in range(warmup):
            _pair(dense, pruned, swap=False)
        pairs = [_pair(dense, pruned, swap=bool(turn % 2)) for turn in range(repeats)]
    return _comparison(pairs)


def _comparison(pairs: list[tuple[float, float]]) -> LatencyComparison:
    ratios = sorted(before / after for before, after in pairs)
    low, median, high = _quartiles(ratios)
    if len(ratios) < _FEW:
        low, high = ratios[0], ratios[-1]
    return LatencyComparison(
        dense=_latency([before for before, _ in pairs]),
        pruned=_latency([after for _, after in pairs]),
        speedup=median,
        low=low,
        high=high,
    )


def _pair(dense: Callable[[], Any], pruned: Callable[[], Any], *, swap: bool) -> tuple[float, float]:
    if swap:
        after = _seconds(pruned)
        return _seconds(dense), after
    return _seconds(dense), _seconds(pruned)


def _seconds(fn: Callable[[], Any]) -> float:
    began = time.perf_counter()
    _wait_for(fn())
    return time.perf_counter() - began


def _wait_for(result: Any) -> None:
    """Block until the devices that a result lies on have computed it; nothing on the CPU."""
    devices = {leaf.device for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)}
    for device in devices:
        if device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(device)


def _latency(samples: list[float]) -> Latency:
    low, median, high = _quartiles(samples)
    return Latency(median, low, high, len(samples))


def _quartiles(samples: list[float]) -> list[float]:
    return statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3


def _check(warmup: int, repeats: int, fewest: int = 1) -> None:
    if repeats < fewest or warmup < 0:
        raise ValueError(f"repeats must be at least {fewest} and warmup at least 0, got {repeats} and {warmup}")
