"""What a channel is worth in memory and latency: how much less a network takes without a part of its group.

Shape legend: G = groups, T = moments of a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.dry_pass import DryPass, OperatorCall
from lightning_taylor.measure.memory_curve import MemoryCurve
from lightning_taylor.measure.operator_times import OperatorTimes, Timer

__all__ = [
    "Savings",
]

_FRACTIONS = (0.25, 0.5, 0.75)  # of the dense widths, at which operators are timed beside the dense ones


@final
class Savings:
    r"""What removing channels of one group saves, on average over half of the group.

    .. math::  \pi_g = \frac{R(w) - R(w - h_g)}{h_g}, \qquad h_g = \lfloor w_g / 2 \rfloor

    with the resource ``R`` at the present widths ``w``. Half of the group, since one channel may save nothing where a
    device works in blocks of eight or sixteen.

    For latency ``R`` is the sum of the operators' times (``OperatorTimes``). For memory it is not the peak, which only
    some layers make, and others as soon as those are narrower; it is what has to go:

    .. math::  R = \frac1N \sum_t \max(0, b_t - L)

    with ``b_t`` the bytes alive after operator ``t``, the limit ``L``, and the N moments above it now.

    Args:
        dry: makes passes without data.
        graph: for the dense widths.
        timer: measures one operator's call.

    Raises:
        UnsupportedModelError: where a network cannot run without data.
    """

    def __init__(self, dry: DryPass, graph: ChannelGraph, timer: Timer) -> None:
        self._dry, self._timer = dry, timer
        self._dense = dict(graph.dense)
        self._times: OperatorTimes | None = None
        self._passes_at: tuple[ChannelGraph, _MemoryPasses] | None = None

    def memory(self, graph: ChannelGraph, limit: float) -> dict[str, float]:
        """Return the bytes that one channel of each group saves where more than the limit is alive.

        Args:
            graph: at the present widths.
            limit: as a fraction of the dense network's peak.

        Returns:
            Group name -> bytes; over all moments where none is above the limit.
        """
        passes = self._memory_passes(graph)
        floor = limit * passes.dense if passes.now.max() > limit * passes.dense else 0.0
        above = max(1, int((passes.now > floor).sum()))
        over = np.maximum(0, passes.now - floor).sum() / above
        return {
            name: max(0.0, over - float(np.maximum(0, half_T - floor).sum() / above)) / count
            for name, (half_T, count) in passes.halves.items()
        }

    def memory_curve(self, graph: ChannelGraph) -> MemoryCurve | None:
        """Return the bytes alive as a function of the widths; None where other widths make a pass of other moments.

        Args:
            graph: at the present widths.
        """
        passes = self._memory_passes(graph)
        now_T, zero_T = passes.now, np.zeros_like(passes.now)
        if any(len(half_T) != len(now_T) for half_T, _ in passes.halves.values()):
            return None
        saved = {name: (now_T - half_T) / count for name, (half_T, count) in passes.halves.items()}
        saved_GT = np.array([saved.get(name, zero_T) for name in graph.groups]).reshape(-1, len(now_T))
        return MemoryCurve(now_T, saved_GT, passes.dense, self._dry.entry_bytes)

    def _memory_passes(self, graph: ChannelGraph) -> _MemoryPasses:
        """Make the passes at these widths, or give those that were made for them before."""
        if self._passes_at is None or self._passes_at[0] is not graph:
            halves = {
                name: (np.array(self._pass(shapes)[1], dtype=np.float64), count)
                for name, (shapes, count) in self._halved(graph).items()
            }
            now_T = np.array(self._pass(graph.shapes)[1], dtype=np.float64)
            self._passes_at = graph, _MemoryPasses(max(self._pass(self._dense)[1]), now_T, halves)
        return self._passes_at[1]

    def latency(self, graph: ChannelGraph) -> dict[str, float]:
        """Return the seconds that one channel of each group saves, as group name -> seconds.

        Args:
            graph: at the present widths.
        """
        if self._times is None:
            self._times = OperatorTimes(self._passes(graph), self._timer)
        now, times = self._pass(graph.shapes)[0], self._times
        return {
            name: max(0.0, times.saved(now, self._pass(shapes)[0])) / count
            for name, (shapes, count) in self._halved(graph).items()
        }

    def _passes(self, graph: ChannelGraph) -> list[list[OperatorCall]]:
        """Return passes of networks with all groups at fractions of their present widths, and the dense one's."""
        shapes = [graph.shrink(_lost(graph, fraction)).shapes for fraction in _FRACTIONS]
        return [self._pass(each)[0] for each in (*shapes, self._dense)]

    def _halved(self, graph: ChannelGraph) -> dict[str, tuple[Mapping[str, tuple[int, ...]], int]]:
        """Return the shapes without half of one group, and how many channels those are; of each that has two."""
        counts = {name: group.size // 2 for name, group in graph.groups.items() if group.size > 1}
        return {name: (graph.shrink({name: range(count)}).shapes, count) for name, count in counts.items()}

    def _pass(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[OperatorCall], list[int]]:
        try:
            return self._dry(shapes)
        except Exception as error:  # a detector counts its boxes, and finds none: what it raises then is its own affair
            raise UnsupportedModelError(f"it cannot run without data: {error}") from error


@dataclass(frozen=True, eq=False)
class _MemoryPasses:
    """The peak of the dense network, the bytes alive now, and without half of each group, and how many that are."""

    dense: int
    now: NDArray[np.float64]
    halves: Mapping[str, tuple[NDArray[np.float64], int]]


def _lost(graph: ChannelGraph, fraction: float) -> dict[str, range]:
    counts = {name: group.size - max(1, round(group.size * fraction)) for name, group in graph.groups.items()}
    return {name: range(count) for name, count in counts.items() if count}
