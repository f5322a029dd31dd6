"""The code blocks of a Markdown page, so that tests can run what its readers paste."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
_HEADING_OR_BLOCK = re.compile(
    r"^#+ (?P<heading>[^\n]*)$|^```(?P<language>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block, and the heading that it stands under."""

    section: str
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page in order; a comment inside of one is no heading."""
    found, section = [], ""
    for hit in re.finditer(_HEADING_OR_BLOCK, page.read_text()):
        if hit["language"] is None:
            section = hit["heading"]
        else:
            found.append(Block(section, hit["language"], hit["text"]))
    return found


def run_python(text: str, name: str) -> dict[str, object]:
    """Run a block as if it was pasted into a file of this name; return what it defined."""
    names: dict[str, object] = {"__name__": "__markdown__"}
    exec(compile(text, name, "exec"), names)
    return names
