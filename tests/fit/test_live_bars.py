"""A line of the log stays readable beside bars that are drawn anew all the time."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from lightning_utilities.core import rank_zero as rank_zero_module
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tqdm.std import tqdm

from lightning_taylor.fit.live_bars import above_bars


@contextmanager
def screen() -> Iterator[io.StringIO]:
    """Take the place of standard error, to which the log writes, as Lightning's own handler does."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    rank_zero_module.log.addHandler(handler)
    try:
        with redirect_stderr(stream):
            yield stream
    finally:
        rank_zero_module.log.removeHandler(handler)
    assert handler.stream is stream


def test_rich_puts_the_line_above_its_bar() -> None:
    with screen() as shown:
        console = Console(file=shown, force_terminal=True, width=60)
        with Live(Text("the bar"), console=console, auto_refresh=False):
            with above_bars():
                rank_zero_module.log.warning("the news")
            before, after = shown.getvalue().split("the news")
    assert before.endswith("\x1b[2K")  # the bar is wiped away
    assert "the bar" in after


def test_tqdm_moves_its_bar_away() -> None:
    with screen() as shown, tqdm(total=3, file=shown, desc="the bar", mininterval=0) as bar:
        bar.update()
        with above_bars():
            rank_zero_module.log.warning("the news")
        before, after = shown.getvalue().split("the news")
    assert before.rpartition("\r")[2].strip() == ""  # the line begins at the left
    assert "the bar" in after


def test_without_a_bar_the_line_is_a_line() -> None:
    with screen() as shown, above_bars():
        rank_zero_module.log.warning("the news")
    assert shown.getvalue() == "the news\n"
