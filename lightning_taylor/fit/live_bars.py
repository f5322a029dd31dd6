"""Lines of a log above the progress bars that are drawn at the moment, which would write over them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_module  # pyright: ignore[reportPrivateImportUsage]

__all__ = ["above_bars"]


@contextmanager
def above_bars() -> Iterator[None]:
    """Let Lightning's log write above live bars: those of rich take lines through ``sys.stderr``, tqdm's move away."""
    with ExitStack() as stack:
        # rich puts a stream of its own in the place of stderr, and Lightning's handlers keep the one before.
        if type(sys.stderr).__module__.startswith("rich."):
            for handler in _handlers():
                if handler.stream in (sys.__stderr__, _behind(sys.stderr)):
                    stack.callback(handler.setStream, handler.setStream(sys.stderr))
        if "tqdm.std" in sys.modules:
            bars: Any = import_module("tqdm.std").tqdm
            stack.enter_context(bars.external_write_mode(file=sys.stderr))
        yield


def _behind(stream: Any) -> Any:
    return getattr(stream, "rich_proxied_file", None)


def _handlers() -> Iterator[logging.StreamHandler[Any]]:
    """Yield the handlers that a line of Lightning's reaches and that write to a stream."""
    logger: logging.Logger | None = rank_zero_module.log  # of the Lightning that was imported last
    while logger is not None:
        yield from (h for h in logger.handlers if type(h) is logging.StreamHandler)
        logger = logger.parent if logger.propagate else None
