"""How long each operator of a network takes at any widths: measured once at a few of them, interpolated between.

A whole network's time tells nothing of one layer: what a channel saves is a thousandth of it, and the machine's noise a
hundredth. So each operator is timed alone. A convolution and a matrix product have two widths, in and out, and are
measured on a grid of both; every other operator has its size. The times never fall where the network grows: between
two points where they do, the machine was disturbed.

Shape legend: I, O = points of the grid of widths, in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_taylor.measure.dry_pass import OperatorCall, TensorSpec
from lightning_taylor.measure.latency import measure_latency

__all__ = [
    "OperatorTimes",
    "Timer",
    "timer_on",
]

Timer = Callable[[OperatorCall], float]
"""Tells how long one call takes, in seconds."""

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
        passes: the operators of passes at several widths, the narrowest network's first and the dense one's last.
        timer: measures one call.

    Raises:
        ValueError: if the passes have different operators.

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
        self._sites = list(zip(*passes, strict=True)) if len({len(each) for each in passes}) == 1 else []
        if not self._sites or any(len({call.func for call in site}) > 1 for site in self._sites):
            raise ValueError("the network runs other operators at other widths")
        self._timer = timer
        self._tables: dict[tuple[tuple[str, str], ...], _Table] = {}
        self._known: dict[tuple[str, str], float] = {}

    def seconds(self, operators: Sequence[OperatorCall]) -> float:
        """Return the time of a pass at other widths.

        Raises:
            ValueError: if it has other operators than the passes at the beginning.
        """
        self._check(operators)
        return sum(self._at(site, call) for site, call in zip(self._sites, operators, strict=True))

    def saved(self, before: Sequence[OperatorCall], after: Sequence[OperatorCall]) -> float:
        """Return by how many seconds a pass is shorter than another; only operators that differ are looked at.

        Raises:
            ValueError: as ``seconds``.
        """
        self._check(before)
        self._check(after)
        changed = ((s, b, a) for s, b, a in zip(self._sites, before, after, strict=True) if b.leaves != a.leaves)
        return sum(self._at(site, b) - self._at(site, a) for site, b, a in changed)

    def _check(self, operators: Sequence[OperatorCall]) -> None:
        if [call.func for call in operators] != [site[-1].func for site in self._sites]:
            raise ValueError("the network runs other operators at other widths")

    def _at(self, site: tuple[OperatorCall, ...], call: OperatorCall) -> float:
        key = tuple(each.key for each in site)
        if key not in self._tables:
            self._tables[key] = self._measured(site)
        return self._tables[key].at(*(_widths(call) or (_size(call), 1.0)))

    def _measured(self, site: Sequence[OperatorCall]) -> _Table:
        """Time one operator: as it stands in each pass, or at all pairs of the widths that it has in them."""
        widths = [_widths(call) for call in site]
        if None in widths:
            by_size = {_size(call): self._time(call) for call in site}
            sizes = np.array(sorted(by_size))
            return _Table(sizes, np.ones(1), _rising(np.array([[by_size[size]] for size in sizes])))
        in_I, out_O = (np.array(sorted(set(each))) for each in zip(*(w for w in widths if w), strict=True))
        seconds_IO = np.array([[self._time(_resized(site[-1], int(i), int(o))) for o in out_O] for i in in_I])
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


_PRODUCTS = ("aten.mm.default", "aten.addmm.default")


def _widths(call: OperatorCall) -> tuple[float, float] | None:
    """Return the widths in and out of a convolution without groups or a matrix product; None for anything else."""
    specs = call.specs
    if str(call.func) in _PRODUCTS:
        return float(specs[-2].shape[-1]), float(specs[-1].shape[-1])
    if str(call.func) == "aten.convolution.default" and call.leaves[-1] == 1 and not _transposed(call):
        return float(specs[1].shape[1]), float(specs[1].shape[0])
    return None


def _transposed(call: OperatorCall) -> bool:
    """Whether a convolution's weight has its input channels first."""
    return any(leaf is True for leaf in call.leaves)


def _resized(call: OperatorCall, i: int, o: int) -> OperatorCall:
    """Return the call at other widths in and out."""
    specs = call.specs
    if str(call.func) in _PRODUCTS:
        *bias, x, weight = specs
        new = [*(replace(b, shape=(*b.shape[:-1], o)) for b in bias), _with(x, -1, i), _with(_with(weight, 0, i), 1, o)]
    else:
        x, weight, *bias = specs
        new = [_with(x, 1, i), _with(_with(weight, 0, o), 1, i), *(_with(b, 0, o) for b in bias)]
    left = iter(new)
    return replace(call, leaves=tuple(next(left) if isinstance(leaf, TensorSpec) else leaf for leaf in call.leaves))


def _with(spec: TensorSpec, dim: int, size: int) -> TensorSpec:
    shape = list(spec.shape)
    shape[dim] = size
    return replace(spec, shape=tuple(shape))


def _size(call: OperatorCall) -> float:
    """Return how many numbers go in."""
    return float(sum(spec.entries for spec in call.specs))
