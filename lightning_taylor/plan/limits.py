"""How many channels each group has to keep: a number for all of them, and shares of what they had."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.trace.patterns import matches

__all__ = ["Least", "MaxRemoved", "fewest", "limits"]

Least = int | Mapping[str, int]
"""Fewest channels that a group keeps: the same number for all, or group name -> number."""

MaxRemoved = float | Mapping[str, float]
"""Largest share of a group's dense channels that may go, in [0, 1]: for all, or name pattern of layers -> share."""

_ROUNDING = 1e-9  # a share of 0.7 of ten channels are seven


def fewest(least: Least, group: str) -> int:
    """Return how many channels a group has to keep.

    Example:
        >>> fewest(4, "a"), fewest({"a": 2}, "a")
        (4, 2)
    """
    return least if isinstance(least, int) else least[group]


def limits(graph: ChannelGraph, min_channels: int, max_removed: MaxRemoved | None) -> Least:
    """Return the fewest channels of each group under both kinds of limits.

    Of several patterns that match a layer of the group, the smallest share holds.

    Args:
        graph: at the present widths.
        min_channels: for all groups.
        max_removed: how much of the dense width of a group may go; None for no such limit.

    Raises:
        ValueError: for a pattern that matches no layer, with the layers' names.

    Example:
        >>> import torch
        >>> from lightning_taylor.trace.api import trace_channels
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> limits(trace_channels(net, torch.rand(1, 3)), 1, {"0": 0.25})
        {'0': 6, '2': 1}
    """
    if max_removed is None:
        return min_channels
    shares = {"*": max_removed} if not isinstance(max_removed, Mapping) else max_removed
    for pattern in shares:
        if not any(matches(layer, pattern) for layer in graph.layers):
            raise ValueError(f"max_removed: {pattern!r} matches no layer; the layers are {', '.join(graph.layers)}")
    owners, sizes = graph.slices_by_axis(), graph.dense_sizes
    found = dict.fromkeys(graph.groups, min_channels)
    for layer, axis in graph.layers.items():
        share = min((share for pattern, share in shares.items() if matches(layer, pattern)), default=1.0)
        for group, _ in owners.get(axis, ()):
            found[group] = max(found[group], math.ceil(sizes[group] * (1 - share) - _ROUNDING))
    return found
