"""Which channels each trial of the proof removes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_taylor.graph.channel_graph import ChannelGraph

__all__ = ["DRAWS", "draw_removal", "turns"]

DRAWS = 4
"""How many trials there are; see ``draw_removal``."""


def draw_removal(graph: ChannelGraph, names: Sequence[str], draw: int, turn: Mapping[str, int]) -> dict[str, Tensor]:
    """A third of each group, with its last; the first of every other group, then of the rest; all but the last.

    Code that cuts channels at positions of its own (a chunk, a slice, a written-out index) often survives when all
    groups of an axis lose alike, and no more when one of them does. ``turn`` is what ``turns`` says of the graph.
    """
    generator = torch.Generator().manual_seed(0)
    remove = {}
    for name in names:
        size = graph.groups[name].size
        if draw == 0:
            some = torch.randperm(size - 1, generator=generator)[: max(1, size // 3) - 1]
            remove[name] = torch.cat([some, torch.tensor([size - 1])]).sort().values
        elif draw == DRAWS - 1:
            remove[name] = torch.arange(size - 1)
        elif turn[name] == draw % 2:
            remove[name] = torch.arange(1)
    return remove


def turns(graph: ChannelGraph) -> dict[str, int]:
    """Group -> 0 or 1, neighbours on one axis differently, and those that are alone in turn.

    Two layers that are as wide by chance must lose differently, or a number that counts the one could follow the other.
    """
    turn: dict[str, int] = {}
    for slices in graph.slices_by_axis().values():
        names = dict.fromkeys(name for name, _ in slices)
        for place, name in enumerate(names):
            turn.setdefault(name, (place if len(names) > 1 else len(turn)) % 2)
    return turn
