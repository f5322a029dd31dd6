"""The commands that no Trainer runs, each in a module of its own with a ``run(args)``."""

from __future__ import annotations

from importlib import import_module

__all__ = ["COMMANDS", "run_command"]

COMMANDS: dict[str, str] = {}
"""Command -> what it does, in a line; the module of that name beside this one runs it."""


def run_command(name: str, args: list[str]) -> None:
    """Run one of ``COMMANDS`` with the rest of its command line."""
    import_module(f"lightning_taylor.cli.{name}").run(args)
