"""Help for a dataclass among the arguments of a callback, where jsonargparse lists it and cannot show it.

``--trainer.callbacks.help=lightning_taylor.TaylorPruning`` names ``--trainer.callbacks.target.help``. Within a list,
as the callbacks are, jsonargparse 4.53 finds an option without a value incomplete.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import get_args, get_type_hints

from jsonargparse import ArgumentParser

from lightning_taylor.fit.callback import TaylorPruning

__all__ = ["show_nested_help"]


def show_nested_help(args: Sequence[str]) -> bool:
    """Print the help that a command line asks for, if it is of this kind.

    Returns:
        Whether it was.
    """
    hints = get_type_hints(TaylorPruning.__init__)
    for arg in args:
        hit = re.fullmatch(r"--(trainer\.callbacks\.(\w+))\.help", arg)
        kind = next(filter(is_dataclass, get_args(hints.get(hit[2]))), None) if hit else None
        if hit and isinstance(kind, type):
            parser = ArgumentParser(prog="lightning-taylor fit", usage="%(prog)s [options]", add_help=False)
            parser.add_class_arguments(kind, hit[1])
            parser.print_help()
            return True
    return False
