"""Dataclasses in plain types and back: types that ``torch.load(weights_only=True)`` takes, and JSON but for tensors.

The type hints of a dataclass say how. A dataclass is written as a dict by field name, a mapping as a dict, a tuple as a
list, a set as a sorted list, a ``StrEnum`` as its text. Numbers, texts and tensors stay as they are, and so does what
is of type ``Any``. A field that has another form in a file says so itself: see ``stored``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

__all__ = ["from_plain", "stored", "to_plain"]

T = TypeVar("T")

_STORED = "stored"
_SCALARS = {bool: bool, int: int, float: (int, float), str: str, Tensor: Tensor, NoneType: NoneType}


@dataclass(frozen=True)
class _Stored:
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def stored(write: Callable[[Any], Any], read: Callable[[Any], Any]) -> dict[str, Any]:
    """Make the metadata of a field whose value has another form in a file than in memory.

    Args:
        write: gives the form of the file, from that of the memory.
        read: gives the form of the memory, from that of the file.

    Example:
        >>> from dataclasses import field
        >>> @dataclass
        ... class Share:
        ...     of_all: float = field(metadata=stored(lambda share: 100 * share, lambda percent: percent / 100))
        >>> to_plain(Share(0.25))
        {'of_all': 25.0}
    """
    return {_STORED: _Stored(write, read)}


def to_plain(value: Any) -> Any:
    """Write a dataclass, or a container of some, in plain types.

    Raises:
        TypeError: if there is something in it that is not plain, in a field that is not of type ``Any``.

    Example:
        >>> @dataclass(frozen=True)
        ... class Layer:
        ...     name: str
        ...     shape: tuple[int, ...]
        >>> to_plain(Layer("stem", (8, 3, 3, 3)))
        {'name': 'stem', 'shape': [8, 3, 3, 3]}
        >>> from_plain(Layer, to_plain(Layer("stem", (8, 3, 3, 3))))
        Layer(name='stem', shape=(8, 3, 3, 3))
    """
    return _written(object, value)


def from_plain(kind: type[T], plain: object) -> T:
    """Read the dataclass that ``to_plain`` was called on. A field that is missing takes its default.

    Args:
        kind: the dataclass.
        plain: what was written.

    Raises:
        TypeError: if a field is unknown, is missing and has no default, or has another type than the dataclass says.
        ValueError: if a text is none of those that a field knows.
    """
    return _read(kind, plain, kind.__name__)


_AS_IT_IS = _Stored(lambda value: value, lambda value: value)


def _form(of: Field[Any]) -> _Stored:
    return of.metadata.get(_STORED, _AS_IT_IS)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Take a type hint apart: the class, the types of what is in it, and whether None is as good."""
    if get_origin(hint) in (Union, UnionType):
        some = [part for part in get_args(hint) if part is not NoneType]
        if len(some) != 1:
            raise TypeError(f"{hint} is of several types, and a file does not say which")
        return (*_parts(some[0])[:2], True)
    return get_origin(hint) or hint, get_args(hint), False


def _of_items(inner: tuple[Any, ...], count: int) -> Sequence[Any]:
    """Return the type of each of so many items."""
    if len(inner) == 1 or inner[1:] == (...,):
        return [inner[0]] * count
    return inner or [object] * count


def _written(hint: Any, value: Any) -> Any:
    if hint is Any or type(value) in _SCALARS:
        return value
    if is_dataclass(value):
        hints = _hints(type(value))
        return {f.name: _written(hints[f.name], _form(f).write(getattr(value, f.name))) for f in fields(value)}
    inner = _parts(hint)[1]
    if isinstance(value, Mapping):
        key, item = inner or (object, object)
        return {_written(key, k): _written(item, v) for k, v in value.items()}
    if isinstance(value, frozenset | set):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return [_written(item, v) for item, v in zip(_of_items(inner, len(value)), value, strict=True)]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, bool | int | float | str | Tensor):
        return value
    raise TypeError(f"{type(value).__name__} is not plain")


def _read(hint: Any, plain: Any, where: str) -> Any:
    """Read a value of some type; ``where`` it stands is for the message."""
    if hint is Any:
        return plain
    kind, inner, optional = _parts(hint)
    if optional and plain is None:
        return None
    if is_dataclass(kind):
        return _read_fields(kind, _checked(plain, Mapping, where), where)
    if kind is Literal:
        return _chosen(plain, inner, where)
    if kind in _SCALARS:
        return _checked(plain, _SCALARS[kind], where)
    if issubclass(kind, StrEnum):
        return kind(_checked(plain, str, where))
    if issubclass(kind, Mapping):
        key, item = inner or (Any, Any)
        return {_read(key, k, where): _read(item, v, where) for k, v in _checked(plain, Mapping, where).items()}
    items = _of_items(inner or (Any,), len(_checked(plain, (list, tuple), where)))
    read = [_read(item, v, where) for item, v in zip(items, plain, strict=True)]
    return kind(read) if kind in (tuple, frozenset, set) else read


def _read_fields(kind: Any, plain: Mapping[str, Any], where: str) -> Any:
    known, hints = {f.name: f for f in fields(kind)}, _hints(kind)
    if unknown := plain.keys() - known.keys():
        raise TypeError(f"{where} has no {', '.join(sorted(map(str, unknown)))}")
    return kind(
        **{name: _form(known[name]).read(_read(hints[name], v, f"{where}.{name}")) for name, v in plain.items()}
    )


def _checked(plain: Any, kind: Any, where: str) -> Any:
    if not isinstance(plain, kind) or (isinstance(plain, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise TypeError(f"{where} should be {' or '.join(k.__name__ for k in kinds)}, got {type(plain).__name__}")
    return plain


def _chosen(plain: Any, known: tuple[Any, ...], where: str) -> Any:
    if plain not in known:
        raise ValueError(f"{where} should be one of {', '.join(map(repr, known))}, got {plain!r}")
    return plain
