"""How long each operator of a network takes at any widths: measured once at a few of them, interpolated between.

A whole network's time tells nothing of one layer: what a channel saves is a thousandth of it, and the machine's noise a
hundredth. So each operator is timed alone. One with two widths, in and out, is measured on a grid of both; every other
has its size. The times never fall where the network grows: between two points where they do, the machine was disturbed.

A network may run other operators at other widths: an attention that lost heads runs code of its own, and a convolution
that is left with one group is none with groups. Such an operator is timed as it stands.

Shape legend: I, O = points of the grid of widths, in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_taylor.measure.dry_pass import OperatorCall
from lightning_taylor.measure.latency import measure_latency
from lightning_taylor.measure.operator_widths import kind_of, size_of, widths_of, with_widths

__all__ = [
    "OperatorTimes",
    "Timer",
    "timer_on",
]

Timer = Callable[[OperatorCall], float]
"""Tells how long one call takes, in seconds."""

_Place = int | tuple[tuple[str, str], int]
"""The number of an operator's site, or the key and number of one that has none."""

_REPEATS = 5


@dataclass(frozen=True)
class _Table:
    """The times of one operator over its two widths, or over its size.

    Attributes:
        widths_in: increasing widths or sizes.
        widths_out: increasing widths; a single 1 where there is only a size.
        seconds: shape ``(I, O)``: what was measured there.
    """

    widths_in: NDArray[np.float64]
    widths_out: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def at(self, i: float, o: float) -> float:
        """Interpolate linearly in both directions; beyond the points, go on as between the nearest two."""
        seconds_O = np.array([_on_line(i, self.widths_in, seconds_I) for seconds_I in self.seconds.T])
        return max(0.0, _on_line(o, self.widths_out, seconds_O))


@final
class OperatorTimes:
    r"""The time of a forward pass as the sum of its operators' times.

    .. math::  T = \sum_s t_s(i_s, o_s)

    over the operators ``s`` of the pass, with ``t_s`` the linear interpolation of what was measured. In seconds, with
    the overhead of one call of each, and without what a compiled or fused graph would save. An operator is timed when
    its time is first asked for.

    Args:
        passes: the operators of passes at several widths, the dense network's last. The one before it says which
            operators are interpolated: those that the others have in the same order.
        timer: measures one call.

    Example:
        >>> from lightning_taylor.measure.dry_pass import DryPass
        >>> from lightning_taylor.utilities.calls import ForwardCall
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)).eval()
        >>> dry = DryPass(net, [ForwardCall("", (torch.rand(1, 4),))], batch=1)
        >>> half, dense = dry({"0.weight": (4, 4), "0.bias": (4,), "1.weight": (2, 4)})[0], dry({})[0]
        >>> times = OperatorTimes([half, dense], lambda call: 1e-6 * sum(spec.entries for spec in call.specs))
        >>> three_quarters = dry({"0.weight": (6, 4), "0.bias": (6,), "1.weight": (2, 6)})[0]
        >>> round(1e6 * times.seconds(dense)), round(1e6 * times.saved(dense, three_quarters))
        (70, 16)
    """

    def __init__(self, passes: Sequence[Sequence[OperatorCall]], timer: Timer) -> None:
        self._kinds = [kind_of(call) for call in passes[-2 if len(passes) > 1 else -1]]
        located = [self._located(operators) for operators in passes]
        self._sites = [tuple(each[s] for each in located if s in each) for s in range(len(self._kinds))]
        self._before: tuple[Sequence[OperatorCall], dict[_Place, OperatorCall]] | None = None
        self._timer = timer
        self._tables: dict[tuple[tuple[str, str], ...], _Table] = {}
        self._known: dict[tuple[str, str], float] = {}

    def seconds(self, operators: Sequence[OperatorCall]) -> float:
        """Return the time of a pass at other widths."""
        return sum(self._at(place, call) for place, call in self._located(operators).items())

    def saved(self, before: Sequence[OperatorCall], after: Sequence[OperatorCall]) -> float:
        """Return by how many seconds a pass is shorter than another; only operators that differ are looked at."""
        if self._before is None or self._before[0] is not before:
            self._before = before, self._located(before)  # the same for each group that something is taken from
        old, new = self._before[1], self._located(after)
        same = {place for place, call in old.items() if place in new and new[place].leaves == call.leaves}
        return sum(
            sign * self._at(place, call)
            for sign, calls in ((1, old), (-1, new))
            for place, call in calls.items()
            if place not in same
        )

    def _located(self, operators: Sequence[OperatorCall]) -> dict[_Place, OperatorCall]:
        """Return each operator under the number of its site, or under its own key and number where it has no site."""
        kinds = [kind_of(call) for call in operators]
        site_of = _matched(kinds, self._kinds)
        alone: dict[tuple[str, str], int] = {}
        located: dict[_Place, OperatorCall] = {}
        for place, call in enumerate(operators):
            if place in site_of:
                located[site_of[place]] = call
            else:
                alone[call.key] = alone.get(call.key, 0) + 1
                located[(call.key, alone[call.key])] = call
        return located

    def _at(self, place: _Place, call: OperatorCall) -> float:
        if not isinstance(place, int):
            return self._time(call)
        key = tuple(each.key for each in self._sites[place])
        if key not in self._tables:
            self._tables[key] = self._measured(self._sites[place])
        return self._tables[key].at(*(widths_of(call) or (size_of(call), 1.0)))

    def _measured(self, site: Sequence[OperatorCall]) -> _Table:
        """Time one operator: as it stands in each pass, or at all pairs of the widths that it has in them."""
        widths = [widths_of(call) for call in site]
        if None in widths:
            by_size = {size_of(call): self._time(call) for call in site}
            sizes = np.array(sorted(by_size))
            return _Table(sizes, np.ones(1), _rising(np.array([[by_size[size]] for size in sizes])))
        in_I, out_O = (np.array(sorted(set(each))) for each in zip(*(w for w in widths if w), strict=True))
        seconds_IO = np.array([[self._time(with_widths(site[-1], int(i), int(o))) for o in out_O] for i in in_I])
        return _Table(in_I, out_O, _rising(seconds_IO))

    def _time(self, call: OperatorCall) -> float:
        if call.key not in self._known:
            self._known[call.key] = self._timer(call)
        return self._known[call.key]


def timer_on(device: torch.device) -> Timer:
    """Return what times calls on a device: the least of a few, since nothing makes a call faster than it is."""

    def seconds(call: OperatorCall) -> float:
        return measure_latency(call.on(device), warmup=2, repeats=_REPEATS).low

    return seconds


def _on_line(x: float, points: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    if len(points) == 1:
        return float(values[0])
    k = int(np.clip(np.searchsorted(points, x), 1, len(points) - 1))
    share = (x - points[k - 1]) / (points[k] - points[k - 1])
    return float(values[k - 1] + share * (values[k] - values[k - 1]))


def _rising(seconds_IO: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lower each time to the least of those at larger widths: noise only ever adds."""
    for axis in range(seconds_IO.ndim):
        seconds_IO = np.flip(np.minimum.accumulate(np.flip(seconds_IO, axis), axis), axis)
    return seconds_IO


def _matched(kinds: Sequence[Hashable], others: Sequence[Hashable]) -> dict[int, int]:
    """Return which entries of two sequences are each other's, in order: index in the first -> index in the second."""
    if kinds == others:
        return {i: i for i in range(len(kinds))}
    blocks = SequenceMatcher(None, kinds, others, autojunk=False).get_matching_blocks()
    return {a + i: b + i for a, b, size in blocks for i in range(size)}
