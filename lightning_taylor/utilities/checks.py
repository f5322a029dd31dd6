"""Checks of arguments: what is a number, and the error for what is none. To Python a bool is an int; not here."""

from __future__ import annotations

from numbers import Real
from typing import Any

__all__ = [
    "check_whole",
    "is_number",
    "is_whole",
]


def is_whole(value: Any, at_least: int | None = None) -> bool:
    """Return whether a value is a whole number, and no bool.

    Example:
        >>> is_whole(3, at_least=2), is_whole(1, at_least=2), is_whole(True), is_whole(2.0)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and (at_least is None or value >= at_least)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, and no bool.

    Example:
        >>> is_number(0.5), is_number(True), is_number("0.5")
        (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: Any, at_least: int | None = None) -> None:
    """Raise ValueError, with the argument's name and its value, unless it is a whole number.

    Example:
        >>> check_whole("bins", 1, at_least=2)
        Traceback (most recent call last):
        ValueError: bins must be a whole number of at least 2, got 1
    """
    if not is_whole(value, at_least):
        bound = "" if at_least is None else f" of at least {at_least}"
        raise ValueError(f"{name} must be a whole number{bound}, got {value!r}")
