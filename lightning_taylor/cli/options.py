"""Options with their values, as they stand on a command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["option_pairs"]


def option_pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values, however they are written.

    Example:
        >>> list(option_pairs(["--model", "nets.Net", "--target=0.5"]))
        [('--model', 'nets.Net'), ('nets.Net', '--target=0.5'), ('--target', '0.5')]
    """
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if equals and position and not option.startswith("-"):
            yield args[position - 1], arg
        elif equals:
            yield option, value
        elif position + 1 < len(args):
            yield arg, args[position + 1]
