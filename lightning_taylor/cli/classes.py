"""Configurations of a LightningCLI that has its classes in its script: the YAML has their settings only.

``LightningCLI(Net, Data)`` writes ``model: {width: 24}``, where ``lightning-taylor fit`` has to be told whose width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lightning_taylor.cli.commands import TRAINER_COMMANDS
from lightning_taylor.cli.exit import fail
from lightning_taylor.cli.options import option_pairs

__all__ = ["PARTS", "classless", "missing_class", "with_class", "with_classes_first"]

PLACEHOLDERS = {"model": "my_project.Net", "data": "my_project.Data"}
"""Part of a configuration that a class is built from -> an example of its path."""

PARTS = tuple(PLACEHOLDERS)


def with_classes_first(args: Sequence[str]) -> list[str]:
    """Name the classes of ``--model`` and ``--data`` before the configurations too, whose settings are then theirs.

    Args:
        args: of ``lightning-taylor``, with paths in the place of the shipped configurations' names.

    Raises:
        SystemExit: with 2 if a configuration has settings of a class that nothing names.

    Example:
        >>> with_classes_first(["fit", "--trainer.max_epochs=3", "--model", "nets.Net"])
        ['fit', '--model=nets.Net', '--trainer.max_epochs=3', '--model', 'nets.Net']
    """
    if not args or args[0] not in TRAINER_COMMANDS:
        return list(args)
    first: list[str] = []
    missing: dict[str, str] = {}
    for part in PARTS:
        named = [value for option, value in option_pairs(args) if option == f"--{part}"]
        first += [f"--{part}={value}" for value in named[-1:]]
        given = [(name, content) for name, content in _configs(args) if content.get(part)]
        # A later configuration may well change settings of the class that the first one has.
        if given and not named and classless(given[0][1], part):
            missing[part] = given[0][0]
    if missing:
        missing_class(next(iter(missing.values())), *missing)
    return [args[0], *first, *args[1:]]


def _configs(args: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for option, value in option_pairs(args):
        if option in ("-c", "--config") and Path(value).is_file():
            content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                yield value, content


def classless(content: Mapping[str, Any], part: str) -> bool:
    """Whether a configuration gives a part's settings, and not the class that they are of."""
    given = content.get(part)
    return isinstance(given, dict) and bool(given) and not {"class_path", "init_args"} & set(given)


def with_class(given: Any, class_path: str) -> dict[str, Any]:
    """A part of a configuration with a class in the place of its own, or of none.

    Example:
        >>> with_class({"width": 24}, "nets.Net")
        {'class_path': 'nets.Net', 'init_args': {'width': 24}}
    """
    settings = given if isinstance(given, dict) else {}
    if {"class_path", "init_args"} & set(settings):
        settings = settings.get("init_args") or {}
    return {"class_path": class_path, "init_args": settings}


def missing_class(name: str, *parts: str, known: str = "") -> NoReturn:
    """End the command, since a configuration does not say of which class a part of it is.

    Args:
        name: the file.
        *parts: "model", "data" or both.
        known: what the class is called, if something names it that need not be believed.
    """
    lacking = " and ".join(f"`{part}`" for part in parts)
    options = " ".join(f"--{part} {known or PLACEHOLDERS[part]}" for part in parts)
    fail(2, f"{name} does not say of which class its {lacking} {'are' if parts[1:] else 'is'}: add {options}")
