"""What was removed, when: plain data that travels with a checkpoint and rebuilds the pruned graph."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Remove

__all__ = ["Event", "Record", "fingerprint"]


@dataclass(frozen=True)
class Event:
    """One removal.

    Attributes:
        step: optimizer steps since the fit began.
        removed: group name -> sorted indices that went, in the group's width just before.
        flops: FLOPs per example afterwards.
        params: parameters afterwards.
        channels: removable channels afterwards.
        seconds: wall time that the event took.
        measured: "latency" and "memory" afterwards, as fractions of the dense model's; those that were measured.
    """

    step: int
    removed: dict[str, list[int]]
    flops: int
    params: int
    channels: int
    seconds: float
    measured: dict[str, float] = field(default_factory=dict)


@dataclass
class Record:
    """All removals from the dense model until now, in order.

    Attributes:
        events: the latest is the last.

    Example:
        >>> record = Record()
        >>> record.append(Event(step=10, removed={"a": [0, 3]}, flops=900, params=90, channels=14, seconds=0.1))
        >>> [event.step for event in record.events]
        [10]
    """

    events: list[Event] = field(default_factory=list)

    def append(self, event: Event) -> None:
        """Add the latest event."""
        self.events.append(event)

    def replay(self, graph: ChannelGraph) -> ChannelGraph:
        """The graph of the pruned model, from that of the dense one, which is left as it is.

        Raises:
            UncoupledChannelsError: if an event does not fit the graph: another model, or one that is pruned
                already.
        """
        for event in self.events:
            try:
                graph = graph.shrink(event.removed)
            except ValueError as error:
                raise UncoupledChannelsError(_misfit(event, str(error))) from error
            channels = sum(group.size for group in graph.groups.values())
            if channels != event.channels:
                raise UncoupledChannelsError(_misfit(event, f"{channels} channels left instead of {event.channels}"))
        return graph


def fingerprint(remove: Remove) -> int:
    """A number that two decisions share only if they remove the same channels, for comparing ranks.

    The first 63 bits of a SHA-256 over names and indices: it fits an int64 tensor, and is the same in every
    process and on every machine. Groups may come in any order; groups that lose nothing do not count.

    Example:
        >>> fingerprint({"a": [1, 2], "b": []}) == fingerprint({"a": torch.tensor([1, 2])})
        True
        >>> fingerprint({"a": [1, 2]}) == fingerprint({"a": [1], "b": [2]})
        False
    """
    canonical = sorted((name, torch.as_tensor(indices).tolist()) for name, indices in remove.items())
    text = repr([(name, indices) for name, indices in canonical if indices])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _misfit(event: Event, reason: str) -> str:
    return (
        f"the record's event at step {event.step} does not fit this graph: {reason}. "
        "Replay it on the graph of the dense model that it was recorded for"
    )
