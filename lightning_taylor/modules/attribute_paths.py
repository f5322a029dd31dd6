"""Whole numbers deep inside of a module's attributes: how they are called, found and replaced.

A path is what one would write in Python behind the module and a dot: ``width``, ``sizes[1]``, ``info[0]['chs']``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Number", "get_number", "numbers_in", "replaced", "split_path"]

_DEEPEST, _LONGEST = 4, 64  # of what tells widths; longer lists and dicts are data

_STEP = re.compile(r"\[(\d+)\]|\['([^']*)'\]")

_TORCHS = frozenset(vars(nn.Module()))

_ARGUMENTS = ("_hparams", "_hparams_initial")
"""Where a LightningModule keeps what it was built with."""


@dataclass(frozen=True)
class Number:
    """A whole number among the attributes of a module.

    Attributes:
        value: what it is.
        beside: the texts that are in the same dict.
    """

    value: int
    beside: tuple[str, ...] = ()


def numbers_in(module: nn.Module) -> dict[str, Number]:
    """Map the paths of all whole numbers greater than 1 that a module keeps to these.

    Lists, tuples and dicts are looked into, but for long ones, what torch keeps of a module, and the arguments that a
    LightningModule was built with: by those it is built again.

    Example:
        >>> net = nn.Identity()
        >>> net.width, net.info = 8, [{"chs": 4, "name": "stem"}]
        >>> [(path, number.value, number.beside) for path, number in numbers_in(net).items()]
        [('width', 8, ()), ("info[0]['chs']", 4, ('stem',))]
    """
    held = {name: value for name, value in vars(module).items() if name not in (*_TORCHS, *_ARGUMENTS)}
    return {path: number for name, value in held.items() for path, number in _numbers(name, value, (), 0)}


def get_number(module: nn.Module, path: str) -> object:
    """Return what is at a path."""
    name, steps = split_path(path)
    value: Any = getattr(module, name)
    for place, key in _STEP.findall(steps):
        value = value[int(place) if place else key]
    return value


def split_path(path: str) -> tuple[str, str]:
    """Split a path into the attribute and the rest, which is empty for a number that is an attribute itself.

    Example:
        >>> split_path("info[0]['chs']")
        ('info', "[0]['chs']")
    """
    name, bracket, rest = path.partition("[")
    return name, bracket + rest


def replaced(holder: Any, steps: str, value: object) -> Any:
    """Return a copy of a list, tuple or dict with another value inside of it; what is beside the steps is shared.

    Example:
        >>> replaced([{"chs": 4}, (5, 6)], "[1][0]", 7)
        [{'chs': 4}, (7, 6)]
    """
    return _replaced(holder, _STEP.findall(steps), value)


def _replaced(holder: Any, steps: list[tuple[str, str]], value: object) -> Any:
    if not steps:
        return value
    (place, key), *rest = steps
    at: Any = int(place) if place else key
    made = list(holder) if isinstance(holder, tuple) else copy.copy(holder)
    made[at] = _replaced(holder[at], rest, value)
    if not isinstance(holder, tuple):
        return made
    return type(holder)(*made) if hasattr(holder, "_fields") else type(holder)(made)


def _numbers(path: str, value: object, beside: tuple[str, ...], depth: int) -> Iterator[tuple[str, Number]]:
    if type(value) is int:
        if value > 1:
            yield path, Number(value, beside)
        return
    if depth == _DEEPEST:
        return
    for step, part, texts in _parts(value):
        yield from _numbers(f"{path}{step}", part, texts, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, object, tuple[str, ...]]]:
    """Yield what is in a container, with the step that leads to it and the texts beside it."""
    if not isinstance(value, list | tuple | dict) or len(value) > _LONGEST:
        return
    if isinstance(value, dict):
        texts = tuple(text for text in value.values() if isinstance(text, str))
        keys = [key for key in value if isinstance(key, str) and "'" not in key]
        yield from ((f"['{key}']", value[key], texts) for key in keys)
    else:
        yield from ((f"[{n}]", part, ()) for n, part in enumerate(value))
