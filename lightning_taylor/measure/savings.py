"""What a channel is worth in memory and latency: how much less a network takes without a part of its group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.dry_pass import DryPass, OperatorCall
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

    def memory(self, graph: ChannelGraph, limit: float) -> dict[str, float]:
        """Return the bytes that one channel of each group saves where more than the limit is alive.

        Args:
            graph: at the present widths.
            limit: as a fraction of the dense network's peak.

        Returns:
            Group name -> bytes; over all moments where none is above the limit.
        """
        dense, now = max(self._pass(self._dense)[1]), np.array(self._pass(graph.shapes)[1])
        floor = limit * dense if now.max() > limit * dense else 0.0
        above = max(1, int((now > floor).sum()))
        over = np.maximum(0, now - floor).sum() / above
        return {
            name: max(0.0, over - float(np.maximum(0, np.array(self._pass(shapes)[1]) - floor).sum() / above)) / count
            for name, (shapes, count) in self._halved(graph).items()
        }

    def latency(self, graph: ChannelGraph) -> dict[str, float]:
        """Return the seconds that one channel of each group saves, as group name -> seconds.

        Args:
            graph: at the present widths.
        """
        try:
            if self._times is None:
                self._times = OperatorTimes(self._passes(graph), self._timer)
            now, times = self._pass(graph.shapes)[0], self._times
            return {
                name: max(0.0, times.saved(now, self._pass(shapes)[0])) / count
                for name, (shapes, count) in self._halved(graph).items()
            }
        except ValueError as error:
            raise UnsupportedModelError(f"its operators cannot be timed one by one: {error}") from error

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


def _lost(graph: ChannelGraph, fraction: float) -> dict[str, range]:
    counts = {name: group.size - max(1, round(group.size * fraction)) for name, group in graph.groups.items()}
    return {name: range(count) for name, count in counts.items() if count}
