"""How a command ends that cannot do what was asked: one line on stderr, and an exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = [
    "debugging",
    "fail",
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
