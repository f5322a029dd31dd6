"""One ranking over all groups, in blocks: the smallest steps that a group's width may take.

A block is one channel, or with ``round_to`` as many as lead to the next multiple. Its rank is that of its most
important channel, so a prefix of the ranking is what "everything below a threshold, kept counts rounded up" means.

Ties are ordered by group and channel index. A threshold would take all channels with the tied score at once:
in a network with thousands of dead units that removes thousands for the hundred that were asked for.

Shape legend: C = channels of a group, G = groups, B = blocks, from the least important to the most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_taylor.errors import PruningError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.limits import WidthLimits

__all__ = ["Counts", "Ranking", "checked_scores"]

Counts = NDArray[np.int64]
"""Whole numbers: channels per group in the order of the graph, or positions of groups or blocks."""


@dataclass(frozen=True)
class Ranking:
    """All blocks that may go, from the least important to the most.

    Attributes:
        owners: shape ``(B,)``: the group of each block, as a position in the graph's order.
        lengths: shape ``(B,)``: its number of channels.
        orders: group name -> shape ``(C,)``, its channels from the least important to the most; None without scores.
    """

    owners: Counts
    lengths: Counts
    orders: Mapping[str, Counts | None]

    @classmethod
    def of(cls, scores: Mapping[str, NDArray[np.float64]], graph: ChannelGraph, limits: WidthLimits) -> Ranking:
        """Rank the channels of all scored groups by score, then group, then index."""
        orders = {name: np.argsort(scores[name], kind="stable") if name in scores else None for name in graph.groups}
        parts: list[tuple[NDArray[np.float64], Counts, Counts]] = []
        for g, (name, order_C) in enumerate(orders.items()):
            if order_C is None:
                continue
            widths = limits.widths(graph.groups[name])
            last = order_C[widths[0] - widths[1:] - 1]
            parts.append((scores[name][last], np.full(len(last), g), widths[:-1] - widths[1:]))
        if not parts:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), orders)
        score_B, owner_B, length_B = (np.concatenate(each) for each in zip(*parts, strict=True))
        order_B = np.argsort(score_B, kind="stable")  # they lie by group already, and within it by score and index
        return cls(owners=owner_B[order_B], lengths=length_B[order_B], orders=orders)

    def __len__(self) -> int:
        return len(self.owners)

    def counts(self, blocks: slice | Counts) -> Counts:
        """How many channels each group has in these blocks, shape ``(G,)``."""
        weights = self.lengths[blocks].astype(np.float64)
        return np.bincount(self.owners[blocks], weights, minlength=len(self.orders)).astype(np.int64)

    def blocks(self, removed_G: Counts) -> Counts:
        """The positions of the blocks that groups lose first, up to so many channels of each; in order."""
        own = [np.flatnonzero(self.owners == g) for g in range(len(self.orders))]
        return np.sort(
            np.concatenate([b[np.cumsum(self.lengths[b]) <= n] for b, n in zip(own, removed_G, strict=True)])
        )

    def channels(self, removed_G: Counts) -> dict[str, Tensor]:
        """The least important channels of each group, so many as given, as a ``remove``."""
        return {
            name: torch.from_numpy(np.sort(order_C[:count]))
            for (name, order_C), count in zip(self.orders.items(), removed_G, strict=True)
            if order_C is not None and count
        }


def checked_scores(scores: Mapping[str, Tensor], graph: ChannelGraph) -> dict[str, NDArray[np.float64]]:
    """The scores in float64 on the CPU.

    Raises:
        ValueError: for an unknown group or a wrong shape.
        PruningError: for scores that are not finite.
    """
    return {name: _checked(name, score_C, graph) for name, score_C in scores.items()}


def _checked(name: str, score_C: Tensor, graph: ChannelGraph) -> NDArray[np.float64]:
    if name not in graph.groups:
        raise ValueError(f"scores for {name!r}, which is no channel group of this graph")
    size = graph.groups[name].size
    if tuple(score_C.shape) != (size,):
        raise ValueError(f"group {name!r} has {size} channels, but its scores have shape {tuple(score_C.shape)}")
    values_C = score_C.detach().to("cpu", torch.float64).numpy()
    bad = size - np.count_nonzero(np.isfinite(values_C))
    if bad:
        raise PruningError(
            f"{bad} of the {size} scores of group {name!r} are not finite; leave the group out of the scores, or "
            "look for an overflow in its activations or gradients"
        )
    return values_C
