"""How far down a graph can go, and whether a target lies within that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.meter import Measure
from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.limits import Least, fewest
from lightning_taylor.plan.target import Target
from lightning_taylor.utilities.checks import check_whole

__all__ = [
    "allowed_widths",
    "check_reachable",
    "reachable_minimum",
    "unreachable_message",
]


def allowed_widths(size: int, *, min_channels: int = 1, round_to: int = 1) -> NDArray[np.int64]:
    """The widths that a group may have from now on, from the present one down.

    Args:
        size: how many channels the group has now; always allowed.
        min_channels: no width below this, except the present one.
        round_to: every width but the present one is a multiple of this.

    Raises:
        ValueError: if an option is not a whole number of at least 1.

    Example:
        >>> allowed_widths(20, min_channels=3, round_to=8)
        array([20, 16,  8])
    """
    for name, value in (("min_channels", min_channels), ("round_to", round_to)):
        check_whole(name, value, at_least=1)
    highest = (size - 1) // round_to * round_to
    return np.concatenate([[size], np.arange(highest, min_channels - 1, -round_to)])


def own_round_to(device: torch.device) -> int:
    """The multiple that widths are best kept at on a device: 8 with tensor cores, else 1.

    Tensor cores work on blocks of eight halves. Three 3x3 convolutions, 64 x 256 x 28^2, bfloat16 and channels_last on
    an H200 (``tests/benchmarks/widths.py``): 0.36 ms at the full inner width of 256, 0.32 at 136 and 0.45 at 135, so
    that a width that is no multiple of eight is slower than no pruning at all. Time per FLOP over the full width's is
    2.2 at odd widths and at multiples of 2 and 4, 1.6 at multiples of 8, 1.5 of 16, 1.4 of 32.

    Example:
        >>> own_round_to(torch.device("cpu"))
        1
    """
    return 8 if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0) else 1


def reachable_minimum(
    graph: ChannelGraph, groups: Iterable[str] | None = None, *, min_channels: Least = 1, round_to: int = 1
) -> Cost:
    """What remains when every group is at its smallest allowed width.

    Args:
        graph: the graph at its present widths.
        groups: names of the groups that can be scored and hence removed from; all if None.
        min_channels: as for ``select``.
        round_to: as for ``select``.

    Raises:
        ValueError: for an unknown group or a bad option.
    """
    return CostModel(graph).at(_removable(graph, groups, min_channels=min_channels, round_to=round_to))


def check_reachable(
    target: Target,
    graph: ChannelGraph,
    groups: Iterable[str] | None = None,
    *,
    min_channels: Least = 1,
    round_to: int = 1,
    meter: Measure | None = None,
) -> Cost:
    """Check that a target can be met, before any training is spent on it.

    Args:
        target: fractions of the dense model that may remain.
        graph: the graph at its present widths.
        groups: as for ``reachable_minimum``.
        min_channels: as for ``select``.
        round_to: as for ``select``.
        meter: measures latency and memory, once, of the smallest network; only if the target asks for them, and
            only after the exact parts were found to be reachable.

    Returns:
        The reachable minimum.

    Raises:
        TargetUnreachableError: with what was asked, what can be reached, and what to relax.
        ValueError: if the target asks for latency or memory and there is no meter.
    """
    groups = None if groups is None else list(groups)
    least = reachable_minimum(graph, groups, min_channels=min_channels, round_to=round_to)
    dense, frozen = CostModel(graph).dense, len(graph.frozen)
    if target.exact and not target.exact.met(least, dense):
        raise TargetUnreachableError(unreachable_message(target.exact, least, dense, frozen))
    if target.to_measure:
        if meter is None:
            raise ValueError(f"{target} needs a meter to measure {', '.join(target.to_measure)}")
        smallest = _smallest(graph, groups, min_channels=min_channels, round_to=round_to)
        measured = meter.ratios(smallest.shapes, target.to_measure)
        if not target.met(least, dense, measured):
            raise TargetUnreachableError(unreachable_message(target, least, dense, frozen, measured))
    return least


def unreachable_message(
    target: Target, least: Cost, dense: Cost, frozen: int | None = None, measured: Mapping[str, float] | None = None
) -> str:
    """What was asked, what can be reached, and what to relax."""
    missed = target.missed(least, dense, measured)
    asked = ", ".join(f"{name}={target.asked[name]:.4g}" for name in missed)
    reachable = ", ".join(f"{name}={fraction:.4g}" for name, fraction in missed.items())
    layers = "frozen layers" if frozen is None else f"the {frozen} frozen layers"
    note = " (measured on this machine, now)" if set(missed) & set(target.to_measure) else ""
    return (
        f"the target {asked} cannot be met: with every group at its minimum {reachable} of the dense model "
        f"remains{note}. "
        f"Ask for more than that, lower min_channels or round_to, raise max_removed, shorten ignore=, or see "
        f"graph.frozen for why {layers} must stay"
    )


def _removable(
    graph: ChannelGraph, groups: Iterable[str] | None, *, min_channels: Least, round_to: int
) -> dict[str, int]:
    """Group -> how many channels it loses on the way to its smallest allowed width."""
    removed = {}
    for name in graph.groups if groups is None else groups:
        if name not in graph.groups:
            raise ValueError(f"no channel group {name!r} in this graph")
        size = graph.groups[name].size
        least = fewest(min_channels, name)
        removed[name] = size - int(allowed_widths(size, min_channels=least, round_to=round_to)[-1])
    return removed


def _smallest(graph: ChannelGraph, groups: Iterable[str] | None, *, min_channels: Least, round_to: int) -> ChannelGraph:
    """The graph with every group at its smallest; which of the channels go makes no difference to a size."""
    removed = _removable(graph, groups, min_channels=min_channels, round_to=round_to)
    return graph.shrink({name: range(count) for name, count in removed.items()})
