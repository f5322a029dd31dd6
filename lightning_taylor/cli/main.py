"""``lightning-taylor``: hand the command line to whoever runs its first word, and say mistakes in a line."""

from __future__ import annotations

import linecache
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata

from lightning_taylor.cli.commands import COMMANDS, EVERY_COMMAND, OVERVIEW, TRAINER_COMMANDS, run_command
from lightning_taylor.cli.exit import debugging, fail, nearest
from lightning_taylor.cli.extras import require_extras
from lightning_taylor.cli.shipped_configs import resolve_configs, shipped_configs
from lightning_taylor.errors import PruningError

__all__ = [
    "main",
]

WARNINGS = (
    # The recipes' small data lies in memory: worker processes would slow it down.
    "The '.*_dataloader' does not have many workers",
    # A checkpoint is evaluated into a folder of its own.
    "The dirpath has changed from",
    # Lightning's own use of a name that torch is about to drop.
    ".*LeafSpec.*is deprecated",
)

OTHER_NET = "Error(s) in loading state_dict for "
"""How torch begins what it says."""

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C stopped, for shells."""

LONGEST = 240

CHATTER = re.compile("💡 Tip: |TPU available: False|Loading `train_dataloader` to estimate")
"""Warnings, and lines of Lightning's log, that a user can do nothing about."""

LOGS = ("lightning.pytorch.utilities.rank_zero", "pytorch_lightning.utilities.rank_zero")
"""Where both names of Lightning are imported, both write to the log of the one that came last."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a subcommand of ``lightning-taylor``.

    Args:
        args: the command line without the program's name; by default ``sys.argv[1:]``.

    Raises:
        SystemExit: with 2 for a mistake on the command line or in a configuration, with 1 if an extra is missing, the
            model cannot be pruned, and with 130 if Ctrl-C stopped the run; the message is on stderr. With
            ``JSONARGPARSE_DEBUG=true`` in the environment, a mistake raises what it raised.
    """
    try:
        with _quiet(), _from_here():
            _dispatch(list(sys.argv[1:] if args is None else args))
    except KeyboardInterrupt:
        fail(INTERRUPTED, "interrupted")
    except SystemExit as stop:
        # Lightning ends a fit that Ctrl-C stopped by itself, with 1.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise SystemExit(INTERRUPTED) from stop
        raise
    except PruningError as error:
        fail(1, str(error))
    except Exception as error:
        if not debugging() and str(error).startswith(OTHER_NET):
            fail(2, f"the checkpoint is of another network than the configuration's model: {_shortly(error)}")
        if not _says_what_to_change(error):
            raise
        fail(2, str(error))


def _shortly(error: Exception) -> str:
    """What torch says about a state dict that does not fit, cut where it lists every tensor."""
    said = " ".join(str(error).removeprefix(OTHER_NET).split())
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def _dispatch(args: list[str]) -> None:
    """Answer what needs no library by itself, and import only what the first word needs."""
    word = args[0] if args else ""
    if word == "--version":
        print(f"lightning-taylor {metadata.version('lightning-taylor')}")
    elif word in ("--help", "-h"):
        print(OVERVIEW)
    elif word in COMMANDS:
        run_command(word, args[1:])
    elif word in TRAINER_COMMANDS or word.startswith("-"):
        _run_trainer(args)
    else:
        wrong = f"no command {word!r}{nearest(word, EVERY_COMMAND)}" if word else _choices()
        fail(2, f"{wrong}\n`lightning-taylor --help` lists the commands")


def _choices() -> str:
    return f"choose one of {', '.join(EVERY_COMMAND)}; `lightning-taylor fit` alone runs a small example"


def _run_trainer(args: list[str]) -> None:
    resolved = resolve_configs(args)
    digits = str(shipped_configs()["digits"]) in resolved
    require_extras("cli", *(["recipes"] if digits else []))
    lightning_cli = import_module("lightning_taylor.cli.lightning_cli")
    with_classes = import_module("lightning_taylor.cli.classes").with_classes_first(resolved)
    written_out = import_module("lightning_taylor.cli.short_forms").expand_short_forms(with_classes)
    if not lightning_cli.show_nested_help(written_out):
        lightning_cli.TaylorCLI(written_out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out, for as long as a command runs, what its user can do nothing about."""

    def keep(record: logging.LogRecord) -> bool:
        return not CHATTER.match(record.getMessage())

    logs = [logging.getLogger(name) for name in LOGS]
    for log in logs:
        log.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "|".join(WARNINGS))
            yield
    finally:
        for log in logs:
            log.removeFilter(keep)


@contextmanager
def _from_here() -> Iterator[None]:
    """Let import paths begin in the folder that the command is called from, where a console script does not look."""
    here = os.getcwd()
    new = here not in sys.path
    if new:
        sys.path.append(here)
    try:
        yield
    finally:
        if new:
            sys.path.remove(here)


def _says_what_to_change(error: Exception) -> bool:
    """Whether ours or Lightning's code raised it on purpose; anything else is a bug and keeps its traceback."""
    # By its name: to import Lightning takes seconds, and who raises it has imported it.
    misconfigured = type(error).__name__ == "MisconfigurationException"
    if debugging() or not (misconfigured or isinstance(error, ValueError | FileNotFoundError)):
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    raises = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")
    return raises and frame.f_globals.get("__name__", "").split(".")[0] in ("lightning_taylor", "lightning")
