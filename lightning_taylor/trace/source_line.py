"""Which line of the model's own code is running, or raised: the innermost one outside torch and this package."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import torch

__all__ = [
    "raised_in_words",
    "running_line",
    "running_place",
]

_SAID = 160  # characters of what an exception says

_HERE = Path(__file__).parent

_CALLERS = {str(_HERE / "api.py"), str(_HERE / "proof.py")}

_PASSED = tuple(f"{folder}{os.sep}" for folder in (_HERE.parent, Path(torch.__file__).parent))


def running_line() -> str:
    """``", resnet.py:97"`` for a reason in words; empty where the model has no code of its own that is worth a name.

    Only the file's name, not its folder: reasons go into checkpoints and reports, and are the same on every machine.
    A cell of a notebook has a file whose name is a random number, and a line typed at a prompt has none.
    """
    return _worded(running_place())


def running_place() -> tuple[str, int] | None:
    """File and line of the model's code that is running; None if it is torch's own."""
    return _innermost(_stack(sys._getframe(1)))


def raised_in_words(error: BaseException) -> str:
    """Return the type of an exception, the first line of its text, and the line of the model from which it came."""
    text = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    place = _worded(_innermost((frame.filename, frame.lineno or 0) for frame in reversed(frames)))
    return f"{type(error).__name__}{f': {text[0][:_SAID]}' if text else ''}{place}"


def _stack(frame: FrameType | None) -> Iterator[tuple[str, int]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _innermost(frames: Iterable[tuple[str, int]]) -> tuple[str, int] | None:
    for file, line in frames:
        if file in _CALLERS:
            break
        if not file.startswith(_PASSED):
            return file, line
    return None


def _worded(place: tuple[str, int] | None) -> str:
    if place is None or place[0].startswith("<") or "ipykernel" in place[0]:
        return ""
    return f", {Path(place[0]).name}:{place[1]}"
