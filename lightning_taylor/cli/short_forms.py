"""``fit --target 0.5`` for ``fit --trainer.callbacks.target 0.5``: the settings of TaylorPruning by their own names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_taylor.cli.exit import fail
from lightning_taylor.cli.options import option_pairs
from lightning_taylor.fit.callback import TaylorPruning

__all__ = ["SHORT_FORMS", "expand_short_forms"]

SHORT_FORMS = tuple(inspect.signature(TaylorPruning).parameters)
"""What may follow ``--`` in the place of ``trainer.callbacks.``, with whatever comes after it."""

CALLBACKS = "--trainer.callbacks"
NAME = TaylorPruning.__name__


def expand_short_forms(args: Sequence[str]) -> list[str]:
    """Write the short forms of a ``fit`` out, at the end of its command line.

    A fit without a TaylorPruning gets one, and settings of a schedule that has no class are a ``Gradual``'s.

    Args:
        args: of ``lightning-taylor``, with paths in the place of the shipped configurations' names.

    Raises:
        SystemExit: with 2 if another callback comes after TaylorPruning: jsonargparse sets the last one's only.

    Example:
        >>> expand_short_forms(["fit", "--trainer.callbacks=TaylorPruning", "--target", "0.5"])
        ['fit', '--trainer.callbacks=TaylorPruning', '--trainer.callbacks.target', '0.5']
    """
    if not args or args[0] != "fit":
        return list(args)
    others: list[str] = []
    short: list[str] = []
    kept = others
    for arg in args:
        if arg.startswith("-"):
            kept = short if _is_short(arg) else others
        kept.append(re.sub("^--", f"{CALLBACKS}.", _with_underscores(arg)) if kept is short and arg[0] == "-" else arg)
    return [*others, *_missing(others, short), *short] if short else others


def _is_short(arg: str) -> bool:
    return re.split(r"[.=+]", _with_underscores(arg).removeprefix("--"))[0] in SHORT_FORMS and arg.startswith("--")


def _with_underscores(arg: str) -> str:
    name = re.split(r"[.=+]", arg.removeprefix("--"))[0]
    return arg.replace(name, name.replace("-", "_"), 1)


def _missing(others: Sequence[str], short: Sequence[str]) -> Iterator[str]:
    """Yield what the settings need before them: the callback, and the class of its schedule."""
    callbacks = _callbacks(others)
    last = callbacks[-1] if callbacks else ("", {})
    if last[0].rpartition(".")[2] != NAME:
        if any(NAME in name for name, _ in callbacks):
            option = short[0].split("=")[0].replace(f"{CALLBACKS}.", "--")
            fail(2, f"{option} is for the last callback, which is {last[0]}: put {NAME} last")
        yield f"{CALLBACKS}+=lightning_taylor.{NAME}"
    schedule = [arg for arg in [*others, *short] if arg.startswith(f"{CALLBACKS}.schedule")]
    if schedule and schedule[0].startswith(f"{CALLBACKS}.schedule.") and not last[1].get("schedule"):
        yield f"{CALLBACKS}.schedule=lightning_taylor.Gradual"


def _callbacks(args: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the class and the settings of each callback, as configurations and options before them set the list."""
    found: list[tuple[str, dict[str, Any]]] = []
    for option, value in option_pairs(args):
        if option in ("-c", "--config") and Path(value).is_file():
            trainer = (yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}).get("trainer")
            if isinstance(trainer, dict) and "callbacks" in trainer:
                found = _entries(trainer["callbacks"])
        elif option in (CALLBACKS, f"{CALLBACKS}+"):
            found = (found if option.endswith("+") else []) + _entries(yaml.safe_load(value))
    return found


def _entries(given: Any) -> list[tuple[str, dict[str, Any]]]:
    each = given if isinstance(given, list) else [given] if given else []
    plain: list[Any] = [{"class_path": entry} if isinstance(entry, str) else entry for entry in each]
    return [(str(entry.get("class_path")), entry.get("init_args") or {}) for entry in plain if isinstance(entry, dict)]
