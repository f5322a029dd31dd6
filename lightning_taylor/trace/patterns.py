"""Name patterns, by which a user chooses layers and modules."""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["matches"]


def matches(name: str, pattern: str) -> bool:
    """Return whether a module, or a module around it, has a name of this pattern.

    Example:
        >>> matches("net.layer4.0.conv1", "layer4"), matches("net.layer4.0.conv1", "*.conv1"), matches("fc", "f")
        (True, True, False)
    """
    parts = name.split(".")
    around = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    return any(fnmatchcase(one, pattern) or fnmatchcase(one, f"*.{pattern}") for one in around)
