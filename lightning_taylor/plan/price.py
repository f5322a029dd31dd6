"""What a channel costs: what its removal saves of the resource that a target asks for, at the present widths."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.meter import Meter
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.target import Target

__all__ = [
    "ChannelPrices",
    "channel_prices",
    "furthest",
    "power_of_price",
]

_UNITS = {"flops": 1e6, "params": 1e6, "channels": 1.0, "memory": 1e6, "latency": 1e-3}
"""What one unit of a price is: MFLOPs per example, millions of entries, channels, MB, milliseconds."""

_LINEAR = ("memory", "latency")
"""What grows more as the widths do than as their square."""

_LEAST = 1e-3  # of the mean price: what seems to cost nothing was measured where it does not count, or not well enough


@dataclass(frozen=True)
class ChannelPrices:
    """What one channel of each group costs of one resource."""

    resource: str
    """That the prices are of."""
    by_group: Mapping[str, float]
    """Group name -> price above 0, in MFLOPs (1e6 per example), millions of parameters, channels, MB (1e6 bytes) or
    milliseconds."""


def power_of_price(own: float, resource: str) -> float:
    """Return the power of the price that a criterion's scores are divided by, where the user gives none.

    FLOPs and parameters are products of two widths: what one channel saves becomes less when others go, so that a
    criterion's own power is below that of a loss for each unit saved. Memory is a sum of widths, and the time of layers
    that wait for memory or for their calls grows little faster: there the power is twice as large.

    Evidence: ResNet-20 and SqueezeNet at equal peak memory and at equal latency (``notebooks/accuracy.md``).

    Args:
        own: of the criterion, for FLOPs.
        resource: that the price is of.

    Example:
        >>> [power_of_price(0.5, resource) for resource in ("flops", "params", "memory", "latency")]
        [0.5, 0.5, 1.0, 1.0]
    """
    return 2 * own if resource in _LINEAR else own


def furthest(target: Target, cost: CostModel, measured: Mapping[str, float]) -> str:
    """Return which of the resources that a target asks for is furthest above its limit.

    Args:
        target: of the whole fit.
        cost: at the present widths.
        measured: "latency" and "memory" as fractions of the dense model's; 1 where they are missing.

    Returns:
        The resource whose present share over the share that may remain is largest; of equal ones the first.

    Example:
        >>> import torch
        >>> from lightning_taylor.trace.api import trace_channels
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
        >>> cost = CostModel(trace_channels(net, torch.rand(1, 3)))
        >>> furthest(Target(flops=0.5, params=0.4), cost, {}), furthest(Target(flops=0.5, latency=0.5), cost, {})
        ('params', 'flops')
    """
    has = {**dict.fromkeys(target.to_measure, 1.0), **target.achieved(cost.now, cost.dense, measured)}
    return max(target.asked, key=lambda name: has[name] / target.asked[name])


def channel_prices(
    target: Target,
    graph: ChannelGraph,
    cost: CostModel,
    meter: Meter | None = None,
    measured: Mapping[str, float] | None = None,
) -> ChannelPrices:
    r"""Return what one channel of each group costs.

    .. math::  \pi_g = R(w) - R(w - 1_g)

    with ``R`` the resource that is furthest above its limit (``furthest``): FLOPs, parameters and channels exactly,
    memory and latency as ``Savings`` says.

    Args:
        target: of the whole fit.
        graph: at the present widths.
        cost: of the graph.
        meter: knows memory and latency; without one, or where the network cannot run without data, FLOPs stand in.
        measured: as for ``furthest``.

    Example:
        >>> import torch
        >>> from lightning_taylor.trace.api import trace_channels
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
        >>> graph = trace_channels(net, torch.rand(1, 3))
        >>> channel_prices(Target(params=0.5), graph, CostModel(graph))
        ChannelPrices(resource='params', by_group={'0': 6e-06})
    """
    resource = furthest(target, cost, measured or {})
    found = _measured(target, resource, graph, meter) if resource in target.to_measure else None
    if found is None:
        resource = resource if resource not in target.to_measure else "flops"
        found, least = cost.saved_per_channel(resource), 1.0
    else:
        least = _LEAST * sum(found.values()) / max(1, len(found))
    unit = _UNITS[resource]
    return ChannelPrices(resource, {name: (max(least, saved) or 1.0) / unit for name, saved in found.items()})


def _measured(target: Target, resource: str, graph: ChannelGraph, meter: Meter | None) -> dict[str, float] | None:
    if meter is None:
        return None
    try:
        found = meter.savings(graph, resource, target.asked[resource])
    except UnsupportedModelError as error:
        warnings.warn(f"channels are ranked by their FLOPs, not by their {resource}: {error}", stacklevel=2)
        return None
    # A group of one channel loses none.
    return {name: found.get(name, 0.0) for name in graph.groups}
