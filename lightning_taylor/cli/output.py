"""Where a command writes: what is there already stays, unless the user says otherwise; the checkpoint always stays."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_taylor.cli.exit import fail

__all__ = ["add_output", "check_outputs"]


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options that say where to write, and that it may replace what is there."""
    parser.add_argument("--output", metavar="PATH", help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace the files that are there already")


def check_outputs(paths: Sequence[Path], checkpoint: str, *, overwrite: bool) -> None:
    """End the command before it has begun if a file must not be written.

    Args:
        paths: of the files, the one that the user named first.
        checkpoint: what is read, which no option lets be replaced.
        overwrite: whether other files may be.

    Raises:
        SystemExit: with 2, after a line on stderr.
    """
    for path in paths:
        if path.is_dir():
            fail(2, f"--output {path} is a folder: give the name of a file in it")
        if file := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
            fail(2, f"--output {path}: {file} is a file, so nothing can be in it")
        if path.exists() and Path(checkpoint).exists() and path.samefile(checkpoint):
            fail(2, f"{path} is the checkpoint itself: give another --output")
        if path.exists() and not overwrite:
            fail(2, f"{path} exists: give another --output, or --overwrite to replace it")
