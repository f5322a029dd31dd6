"""How many channels each layer had after each event, worked out from the record: nothing has to be noted meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.record import Record

__all__ = ["Size", "widths_after", "widths_now"]


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        fractions: resource -> fraction of the dense model that is left.
        widths: layer -> channels, of every layer that can lose some.
    """

    fractions: Mapping[str, float]
    widths: Mapping[str, int]


def widths_now(graph: ChannelGraph) -> dict[str, int]:
    """The channels of every layer that can lose some, in forward order.

    Args:
        graph: at the present widths.

    Returns:
        Layer name -> how many output channels it has.
    """
    removable = graph.slices_by_axis()
    return {layer: graph.width(axis) for layer, axis in graph.layers.items() if axis in removable}


def widths_after(graph: ChannelGraph, record: Record) -> tuple[Mapping[str, int], ...]:
    """The same after each event of a record.

    Counted back from the present: each channel of a group that an event removed took a fixed number of entries from
    each layer that the group lives in. So it holds after a resume, and after a guard went back.

    Args:
        graph: after the last event of the record.
        record: the events.

    Returns:
        One mapping per event, in their order.
    """
    removable, widths = graph.slices_by_axis(), widths_now(graph)
    entries = {layer: Counter[str]() for layer in widths}
    for layer in widths:
        for group, part in removable[graph.layers[layer]]:
            entries[layer][group] = part.index.shape[1]  # under two roles the same entries
    found: list[Mapping[str, int]] = []
    for event in reversed(record.events):
        found.append(dict(widths))
        for layer in widths:
            widths[layer] += sum(len(event.removed.get(group, ())) * each for group, each in entries[layer].items())
    return tuple(reversed(found))
