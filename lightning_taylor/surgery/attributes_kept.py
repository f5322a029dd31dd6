"""What objects keep: attributes of modules and callbacks, and of what these keep, with names for messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["kept_by"]

_OWN = frozenset(vars(nn.Module()))
"""Where a module keeps its parameters, buffers, parts and hooks: those are no copies."""

_FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "lightning_taylor")


def kept_by(holders: Mapping[str, object], depth: int = 2) -> Iterator[tuple[str, Any]]:
    """Yield every attribute of some objects, and of plain objects, dicts and lists that these keep, with its name.

    Args:
        holders: name of an object -> the object. Of a module, its parts are holders, too.
        depth: how far to go inside of what is kept.

    Example:
        >>> class Average:
        ...     def __init__(self):
        ...         self.slow = {"ema": {"weight": 1}}
        >>> [name for name, _ in kept_by({"Average": Average()})]
        ['Average.slow', "Average.slow['ema']"]
    """
    for owner, holder in holders.items():
        for name, value in _items(owner, holder):
            yield name, value
            if depth > 1 and _is_plain(value):
                yield from kept_by({name: value}, depth - 1)


def _items(owner: str, holder: object) -> Iterator[tuple[str, Any]]:
    if isinstance(holder, nn.Module):
        for part, module in holder.named_modules():
            where = f"{owner}.{part}" if part else owner
            yield from ((f"{where}.{name}", value) for name, value in list(vars(module).items()) if name not in _OWN)
    elif isinstance(holder, dict):
        yield from ((f"{owner}[{key!r}]", value) for key, value in list(holder.items()))
    elif isinstance(holder, list | tuple):
        yield from ((f"{owner}[{i}]", value) for i, value in enumerate(holder))
    else:
        yield from ((f"{owner}.{name}", value) for name, value in list(getattr(holder, "__dict__", {}).items()))


def _is_plain(value: object) -> bool:
    if isinstance(value, nn.Module | type | Tensor):
        return False
    if isinstance(value, dict | list | tuple):
        values = value.values() if isinstance(value, dict) else value
        return 0 < len(value) < 100 and not any(isinstance(v, Tensor) for v in values)
    return hasattr(value, "__dict__") and type(value).__module__.split(".")[0] not in _FRAMEWORKS
