"""Importing a user's module, which may be the script that trains: it must not train anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Trainer

from lightning_taylor.cli.exit import fail
from lightning_taylor.utilities.lightning_names import either

__all__ = ["without_fits"]


@contextmanager
def without_fits() -> Iterator[None]:
    """End the command if a module that is imported meanwhile begins a fit, or reads the command line for one.

    Raises:
        SystemExit: with 2, after a line on stderr.
    """

    def refuse(*_: Any, **__: Any) -> None:
        script = _importing()
        fail(2, f'{script} trains when it is imported: put that part of it below `if __name__ == "__main__":`')

    with ExitStack() as stack:
        for kind, method in _beginnings():
            for same in either(kind):
                stack.enter_context(patch.object(same, method, refuse))
        yield


def _beginnings() -> list[tuple[type, str]]:
    """List the classes with the method that begins a fit; of LightningCLI only where its packages are installed."""
    beginnings: list[tuple[type, str]] = [(Trainer, "fit")]
    with suppress(ImportError):
        from lightning.pytorch.cli import LightningCLI

        beginnings.append((LightningCLI, "__init__"))
    return beginnings


def _importing() -> str:
    """Name the file whose import is under way, the innermost if one imports another."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return frame.f_code.co_filename
