"""What was removed, when: plain data that travels with a checkpoint and rebuilds the pruned graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Remove

__all__ = ["Event", "Record", "fingerprint"]

_VERSION = 1


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

    def to_plain(self) -> dict[str, Any]:
        """The event as a dict of ints, floats, strings, lists and dicts."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Event:
        """The event that ``to_plain`` was called on."""
        return cls(**plain)


@dataclass
class Record:
    """All removals from the dense model until now, in order.

    Example:
        >>> record = Record()
        >>> record.append(Event(step=10, removed={"a": [0, 3]}, flops=900, params=90, channels=14, seconds=0.1))
        >>> Record.from_plain(record.to_plain()) == record
        True
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

    def to_plain(self) -> dict[str, Any]:
        """The record in types that load under ``torch.load(weights_only=True)`` and go into JSON."""
        return {"version": _VERSION, "events": [event.to_plain() for event in self.events]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Record:
        """The record that ``to_plain`` was called on.

        Raises:
            ValueError: if it was written in a format that this version does not know.
        """
        if plain.get("version") != _VERSION:
            raise ValueError(
                f"a record of version {plain.get('version')!r}; this release reads version {_VERSION}: "
                "load it with the release that wrote it"
            )
        return cls([Event.from_plain(event) for event in plain["events"]])


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
