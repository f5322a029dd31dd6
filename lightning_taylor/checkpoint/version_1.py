"""What the first release wrote into checkpoints, in the form of today: the one place that knows the old one.

It wrote most dataclasses as lists of their fields, in order, and the latest fields may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["state_of_version_1", "widths_of_version_1"]

VERSION = 2
"""Of what is returned."""

SLICE = ("tensor", "dim", "index", "role")
OPERATION = ("module", "name", "flops", "axes")
LINKED = ("module", "attribute", "axis", "dense", "width", "minus")
STRETCH = ("order", "each", "repeats", "some", "calls")

Plain = Mapping[str, Any]


def state_of_version_1(state: Plain) -> dict[str, Any]:
    """Bring a pruning's state into the form of today."""
    parts = {"graph": _graph, "record": _record, "guard": _guard, "widths": widths_of_version_1}
    return {**_changed(state, parts), "version": VERSION}


def widths_of_version_1(widths: Plain) -> dict[str, Any]:
    """Bring what a checkpoint says about its widths into the form of today.

    Example:
        >>> widths_of_version_1({"dense": {}, "dims": {}, "followers": [["net", "heads", ["net.weight", 0], 4, 8]]})
        {'dense': {}, 'dims': {}, 'followers': [{'module': 'net', 'attribute': 'heads', ...}], 'version': 2}
    """
    return {**_changed(widths, {"followers": lambda linked: _named(LINKED, linked)}), "version": VERSION}


def _graph(graph: Plain) -> dict[str, Any]:
    parts = {
        "groups": lambda groups: {n: {"name": n, "slices": _named(SLICE, slices)} for n, slices in groups.items()},
        "operations": lambda operations: _named(OPERATION, operations),
        "followers": lambda linked: _named(LINKED, linked),
        "rows": lambda rows: {layer: {"stretches": _named(STRETCH, stretches)} for layer, stretches in rows.items()},
    }
    return _changed(graph, parts)


def _record(record: Plain) -> dict[str, Any]:
    if record["version"] != 1:
        raise ValueError(f"a record of version {record['version']!r} in a state of version 1")
    return {"events": record["events"]}


def _guard(guard: Plain) -> dict[str, Any]:
    return _changed(guard, {"good": lambda good: _changed(good, {"graph": _graph, "record": _record})})


def _changed(plain: Plain, parts: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Change some entries, of those that are there and not None."""
    return {k: v if v is None or k not in parts else parts[k](v) for k, v in plain.items()}


def _named(fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(fields, row, strict=False)) for row in rows]
