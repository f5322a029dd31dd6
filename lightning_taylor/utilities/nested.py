"""One way to walk what models are called with and what they return: containers and objects with tensors in them.

What is a container, in this order: whatever torch's pytree knows (tuples, named tuples, lists, dicts, deques, and the
kinds that libraries register there), sets, any other mapping or sequence (``UserDict``, ``BatchEncoding``, OmegaConf's
configs), and plain objects, by their attributes: dataclasses, frozen and with slots too. Modules, classes and
functions are leaves. A walk enters every object once, so circles have an end.
"""

from __future__ import annotations

import copy
import functools
from collections import UserString, namedtuple
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["leaves_in", "mapped", "parts_of"]

_LEAVES = (
    Tensor, nn.Module, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, functools.partial,
    type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, range, UserString,
)  # fmt: skip

Rebuild = Callable[[list[Any]], Any]


def leaves_in(values: Any) -> Iterator[Any]:
    """Yield everything in nested containers and objects that holds nothing itself, in order."""
    seen: dict[int, Any] = {}  # with the objects, or another could get the number of one that is gone

    def walk(value: Any) -> Iterator[Any]:
        opened = _open(value)
        if opened is None:
            yield value
        elif id(value) not in seen:
            seen[id(value)] = value
            for part in opened[0]:
                yield from walk(part)

    return walk(values)


def mapped(values: Any, change: Callable[[Any], Any], special: Callable[[Any], Any] | None = None) -> Any:
    """Change every leaf of nested containers and objects; these are made anew, of the same types.

    Objects that are no containers stay the same where nothing in them changes; none is written into. What is
    reached again from inside of itself, as in a graph whose nodes know each other, is the new one there too, but for
    what cannot be made before its parts are: tuples and sets.

    Args:
        values: anything.
        change: of a leaf.
        special: of a container, before it is entered: another one to go on with.
    """
    done: dict[int, tuple[Any, Any]] = {}
    inside: dict[int, Any] = {}
    early: dict[int, Any] = {}

    def walk(value: Any) -> Any:
        if id(value) in inside:
            return early.setdefault(id(value), _copied(inside[id(value)]))
        if id(value) in done:
            return done[id(value)][1]
        given = value if special is None else special(value)
        opened = _open(given)
        if opened is None:
            return change(given)
        inside[id(value)] = given
        parts, rebuild, always = opened
        new = [walk(part) for part in parts]
        del inside[id(value)]
        if early.get(id(value), given) is not given:
            made = _refilled(early[id(value)], new)
        else:
            same = all(a is b for a, b in zip(new, parts, strict=True))
            made = given if same and not always else rebuild(new)
        done[id(value)] = value, made
        return made

    return walk(values)


def parts_of(value: Any) -> list[Any]:
    """List what a container or an object holds directly; nothing for a leaf."""
    opened = _open(value)
    return opened[0] if opened else []


def _open(value: Any) -> tuple[list[Any], Rebuild, bool] | None:
    """Take a container apart: its parts, how to make it from others, and whether to do so if nothing changed."""
    if isinstance(value, _LEAVES):
        return None
    if type(value) in (tuple, list):  # nearly always
        return list(value), type(value), True
    kind: Any = namedtuple if isinstance(value, tuple) and hasattr(value, "_fields") else type(value)
    if kind in pytree.SUPPORTED_NODES:
        node = pytree.SUPPORTED_NODES[kind]
        parts, context = node.flatten_fn(value)
        return list(parts), lambda new: node.unflatten_fn(new, context), True
    if isinstance(value, Mapping):
        keys = list(value)
        return [value[key] for key in keys], lambda new: _mapping(value, keys, new), isinstance(value, dict)
    if isinstance(value, tuple | set | frozenset):
        return list(value), lambda new: _sequence(value, new), True
    if isinstance(value, Sequence):
        return list(value), lambda new: _sequence(value, new), isinstance(value, list)
    names = _attributes(value)
    if not names:
        return None
    return [getattr(value, name) for name in names], lambda new: _object(value, names, new), False


def _copied(value: Any) -> Any:
    """Copy what can be filled later; return a tuple, a set and what refuses to be copied itself."""
    try:
        return value if isinstance(value, tuple | set | frozenset) else copy.copy(value)
    except Exception:
        return value


def _refilled(made: Any, new: list[Any]) -> Any:
    """Put other parts into a copy of a container, which something inside of it holds already."""
    if isinstance(made, MutableMapping):
        for key, part in zip(list(made), new, strict=True):
            made[key] = part
    elif isinstance(made, MutableSequence):
        for place, part in enumerate(new):
            made[place] = part
    else:
        for name, part in zip(_attributes(made), new, strict=True):
            object.__setattr__(made, name, part)
    return made


def _mapping(value: Any, keys: list[Any], new: list[Any]) -> Any:
    items = dict(zip(keys, new, strict=True))
    try:
        made = copy.copy(value)
        for key, item in items.items():
            made[key] = item
    except Exception:  # one that may not be written to, or not hold these
        return items
    return made


def _sequence(value: Any, new: list[Any]) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*new)
    try:
        return type(value)(new)
    except Exception:  # another constructor
        return tuple(new) if isinstance(value, tuple) else new


def _object(value: Any, names: list[str], new: list[Any]) -> Any:
    made = copy.copy(value)
    for name, part in zip(names, new, strict=True):
        if getattr(value, name) is not part:
            object.__setattr__(made, name, part)  # frozen dataclasses too
    return made


def _attributes(value: Any) -> list[str]:
    """List the attributes of an object itself, not of its class."""
    slots = (vars(cls).get("__slots__", ()) for cls in reversed(type(value).__mro__))
    names = [n for held in slots for n in ((held,) if isinstance(held, str) else held)]
    kept = [n for n in names if n not in ("__dict__", "__weakref__") and hasattr(value, n)]
    return [*kept, *getattr(value, "__dict__", {})]
