"""``lightning-taylor report``: the table and the page of a pruning, from what its checkpoint remembers."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from lightning_taylor.cli.arguments import Parser, add_trust
from lightning_taylor.cli.checkpoint_file import pruning_in, read_checkpoint
from lightning_taylor.cli.exit import fail
from lightning_taylor.cli.output import add_output, check_outputs
from lightning_taylor.report.commands import shown_commands
from lightning_taylor.report.html import write_page
from lightning_taylor.report.summary_table import summary_tables

__all__ = ["run"]

DESCRIPTION = "Show the report of a pruning from its checkpoint, and write it as a page; no model's class is needed."
EXAMPLES = """\
examples:
  lightning-taylor report lightning_logs/version_0/checkpoints/last.ckpt
  lightning-taylor report last.ckpt --output friday.html"""


def run(args: list[str]) -> None:
    """Print the table and write the page."""
    parser = Parser("report", DESCRIPTION, EXAMPLES)
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of a fit with TaylorPruning")
    add_output(parser, "the page; by default pruning.html beside the checkpoint")
    add_trust(parser)
    asked = parser.parse_args(args)
    path = Path(asked.output or Path(asked.checkpoint).parent / "pruning.html")
    check_outputs([path], asked.checkpoint, overwrite=asked.overwrite)
    state, *_ = pruning_in(read_checkpoint(asked.checkpoint, trust=asked.trust), asked.checkpoint)
    try:
        summary = state.summary(asked.checkpoint)
    except (KeyError, ValueError) as error:
        fail(2, f"what {asked.checkpoint} says about its pruning is no pruning ({type(error).__name__}: {error})")
    Console(file=sys.stdout, highlight=False).print(summary_tables(summary))
    print(f"As a page: {write_page(summary, path)}")
    print(shown_commands(summary))
