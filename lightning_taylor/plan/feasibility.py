"""How far down a graph can go, and whether a target lies within that."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch

from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.meter import Measure
from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.limits import NO_LIMITS, WidthLimits
from lightning_taylor.plan.target import Target

__all__ = [
    "check_reachable",
    "reachable_minimum",
    "smallest",
    "unreachable_message",
]


_NOISE = 0.1  # of a latency: more than quick measurements are off by

_MOST = 0.9
"""Of what a measured resource can lose, beyond which a network is hardly left."""


def own_round_to(device: torch.device, *, timed: bool = False) -> int:
    """The multiple that widths are best kept at on a device: 8 with tensor cores, and on a CPU for a target of latency.

    Tensor cores work on blocks of eight halves. Three 3x3 convolutions, 64 x 256 x 28^2, bfloat16 and channels_last on
    an H200 (``tests/benchmarks/widths.py``): 0.36 ms at the full inner width of 256, 0.32 at 136 and 0.45 at 135, so
    that a width that is no multiple of eight is slower than no pruning at all. Time per FLOP over the full width's is
    2.2 at odd widths and at multiples of 2 and 4, 1.6 at multiples of 8, 1.5 of 16, 1.4 of 32.

    A CPU's vectors hold eight or sixteen floats: with multiples of eight, SqueezeNet and ResNet-20 have a seventh to a
    fifth more FLOPs left in the same time (``notebooks/accuracy.md``). A target of FLOPs gains nothing by them.

    Args:
        device: that the network is on.
        timed: whether the fit has a target of latency.

    Example:
        >>> own_round_to(torch.device("cpu")), own_round_to(torch.device("cpu"), timed=True)
        (1, 8)
    """
    if device.type == "cpu":
        return 8 if timed else 1
    return 8 if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0) else 1


def reachable_minimum(
    graph: ChannelGraph, groups: Iterable[str] | None = None, limits: WidthLimits = NO_LIMITS
) -> Cost:
    """What remains when every group is at its smallest allowed width.

    Args:
        graph: the graph at its present widths.
        groups: names of the groups that can be scored and hence removed from; all if None.
        limits: of the widths.

    Raises:
        ValueError: for an unknown group.
    """
    return CostModel(graph).at(_removable(graph, groups, limits))


def check_reachable(
    target: Target,
    graph: ChannelGraph,
    groups: Iterable[str] | None = None,
    limits: WidthLimits = NO_LIMITS,
    *,
    meter: Measure | None = None,
) -> Cost:
    """Check that a target can be met, before any training is spent on it.

    A latency or a memory of which nine tenths of what can go have to go is warned of: what the network takes at any
    width, such as the calls of its operators at a batch of one, is then most of what may remain.

    Args:
        target: fractions of the dense model that may remain.
        graph: the graph at its present widths.
        groups: as for ``reachable_minimum``.
        limits: of the widths.
        meter: measures latency and memory of the smallest network, a latency near to its limit with care; only if the
            target asks for them, and only after the exact parts were found to be reachable.

    Returns:
        The reachable minimum.

    Raises:
        TargetUnreachableError: with what was asked, what can be reached, and what to relax.
        ValueError: if the target asks for latency or memory and there is no meter.
    """
    groups = None if groups is None else list(groups)
    least = reachable_minimum(graph, groups, limits)
    dense, frozen = CostModel(graph).dense, len(graph.frozen)
    if target.exact and not target.exact.met(least, dense):
        raise TargetUnreachableError(unreachable_message(target.exact, least, dense, frozen))
    if target.to_measure:
        if meter is None:
            raise ValueError(f"{target} needs a meter to measure {', '.join(target.to_measure)}")
        shapes = smallest(graph, groups, limits).shapes
        measured = meter.ratios(shapes, target.to_measure)
        if target.latency is not None and abs(measured["latency"] - target.latency) < _NOISE * target.latency:
            measured = meter.ratios(shapes, target.to_measure, careful=True)
        if not target.met(least, dense, measured):
            raise TargetUnreachableError(unreachable_message(target, least, dense, frozen, measured))
        _warn_if_little_is_left(target, measured)
    return least


def _warn_if_little_is_left(target: Target, measured: Mapping[str, float]) -> None:
    asked = {name: target.asked[name] for name in target.to_measure}
    near = [name for name, share in asked.items() if 1 - share > _MOST * (1 - measured[name])]
    if near:
        warnings.warn(
            f"the target {_listed(asked, near)} leaves little of the network: with every group at its minimum it "
            f"measures {_listed(measured, near)} of the dense model. Ask for more, or give example_inputs of a larger "
            "batch, if the model is deployed with one",
            stacklevel=2,
        )


def _listed(shares: Mapping[str, float], names: Iterable[str]) -> str:
    return ", ".join(f"{name}={shares[name]:.4g}" for name in names)


def unreachable_message(
    target: Target, least: Cost, dense: Cost, frozen: int | None = None, measured: Mapping[str, float] | None = None
) -> str:
    """What was asked, what can be reached, and what to relax."""
    missed = target.missed(least, dense, measured)
    asked, reachable = _listed(target.asked, missed), _listed(missed, missed)
    layers = "frozen layers" if frozen is None else f"the {frozen} frozen layers"
    note = " (measured on this machine, now)" if set(missed) & set(target.to_measure) else ""
    return (
        f"the target {asked} cannot be met: with every group at its minimum {reachable} of the dense model "
        f"remains{note}. "
        f"Ask for more than that, lower min_channels or round_to, raise max_removed, shorten ignore=, or see "
        f"graph.frozen for why {layers} must stay"
    )


def _removable(graph: ChannelGraph, groups: Iterable[str] | None, limits: WidthLimits) -> dict[str, int]:
    """Group -> how many channels it loses on the way to its smallest allowed width."""
    names = list(graph.groups if groups is None else groups)
    for name in names:
        if name not in graph.groups:
            raise ValueError(f"no channel group {name!r} in this graph")
    return {name: limits.removable(graph.groups[name]) for name in names}


def smallest(graph: ChannelGraph, groups: Iterable[str] | None, limits: WidthLimits) -> ChannelGraph:
    """Return the graph with every group at its smallest; which of the channels go makes no difference to a size."""
    return graph.shrink({name: range(count) for name, count in _removable(graph, groups, limits).items()})
