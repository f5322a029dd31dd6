"""How a command ends that cannot do what was asked: a line on stderr, with the name that was meant, and a code."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from difflib import get_close_matches
from typing import NoReturn

__all__ = [
    "debugging",
    "fail",
    "listed",
    "nearest",
]

DEBUG = "JSONARGPARSE_DEBUG"
"""jsonargparse's own switch: as an environment variable, "true" turns its messages into tracebacks, and ours too."""


def fail(code: int, message: str) -> NoReturn:
    """Print the message for the user of a command and leave: 2 for a mistake in the input, 1 for anything else.

    Raises:
        SystemExit: always.
    """
    print(f"lightning-taylor: error: {message}", file=sys.stderr)
    raise SystemExit(code)


def debugging() -> bool:
    """Whether a mistake should show its traceback."""
    return os.environ.get(DEBUG, "").lower() == "true"


def nearest(name: str, known: Collection[str]) -> str:
    """Name the known names that are like a wrong one, or all of them if they are few."""
    if near := get_close_matches(name, sorted(set(known)), n=3, cutoff=0.7):
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {listed(known)}" if 0 < len(known) <= 15 else ""


def listed(names: Collection[str]) -> str:
    """Join names with commas; in quotes where a comma is part of one.

    Example:
        >>> listed(["Taylor", "Random"]), listed(["Taylor", "Taylor, mean over positions"])
        ('Taylor, Random', "'Taylor', 'Taylor, mean over positions'")
    """
    quoted = any("," in name for name in names)
    return ", ".join(repr(name) if quoted else name for name in names)
