"""How narrow groups may become: a number for all of them, shares of what they had, and a multiple."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import ChannelGroup
from lightning_taylor.trace.patterns import matches
from lightning_taylor.utilities.checks import check_whole

__all__ = ["NO_LIMITS", "Least", "MaxRemoved", "WidthLimits"]

Least = int | Mapping[str, int]
"""Fewest channels that a group keeps: the same number for all, or group name -> number."""

MaxRemoved = float | Mapping[str, float]
"""Largest share of a group's dense channels that may go, in [0, 1]: for all, or name pattern of layers -> share."""

_ROUNDING = 1e-9  # a share of 0.7 of ten channels are seven


@final
@dataclass(frozen=True)
class WidthLimits:
    """How far down the widths of groups may go.

    Attributes:
        min_channels: every group keeps at least this many (or all it has, if fewer); of a mapping, each its own number.
        round_to: tensors keep multiples of this many entries, rounded up: so many channels, but fewer heads, or groups
            of a convolution, whose entries count. A group's present width is always allowed.

    Raises:
        ValueError: if one of them is not a whole number of at least 1.
    """

    min_channels: Least = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        least = self.min_channels
        for number in least.values() if isinstance(least, Mapping) else [least]:
            check_whole("min_channels", number, at_least=1)
        check_whole("round_to", self.round_to, at_least=1)

    @classmethod
    def of(cls, graph: ChannelGraph, min_channels: int, round_to: int, max_removed: MaxRemoved | None) -> WidthLimits:
        """Join the limits that are numbers of channels with those that are shares of what a group had.

        Of several patterns that match a layer of the group, the smallest share holds.

        Args:
            graph: at the present widths.
            min_channels: for all groups.
            round_to: for all groups.
            max_removed: how much of the dense width of a group may go; None for no such limit.

        Raises:
            ValueError: for a pattern that matches no layer, with the layers' names.

        Example:
            >>> import torch
            >>> from lightning_taylor.trace.api import trace_channels
            >>> nn = torch.nn
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
            >>> WidthLimits.of(trace_channels(net, torch.rand(1, 3)), 1, 1, {"0": 0.25})
            WidthLimits(min_channels={'0': 6, '2': 1}, round_to=1)
        """
        if max_removed is None:
            return cls(min_channels, round_to)
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
        return cls(found, round_to)

    def widths(self, group: ChannelGroup) -> NDArray[np.int64]:
        """Return the widths that a group may have from now on, from the present one down.

        Example:
            >>> import torch
            >>> from lightning_taylor.graph.types import Role, Slice
            >>> group = ChannelGroup("a", (Slice("a.weight", 0, torch.arange(20)[:, None], Role.PRODUCER),))
            >>> WidthLimits(min_channels=3, round_to=8).widths(group)
            array([20, 16,  8])
        """
        least = self.min_channels if isinstance(self.min_channels, int) else self.min_channels[group.name]
        # A channel that is a head of 16 rows makes a multiple of 8 by itself.
        multiple = math.lcm(*(self.round_to // math.gcd(self.round_to, s.index.shape[1]) for s in group.slices))
        highest = (group.size - 1) // multiple * multiple
        return np.concatenate([[group.size], np.arange(highest, least - 1, -multiple)])

    def removable(self, group: ChannelGroup) -> int:
        """Return how many channels a group may lose."""
        return group.size - int(self.widths(group)[-1])


NO_LIMITS = WidthLimits()
"""Every group may go down to one channel."""
