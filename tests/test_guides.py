"""Every block of the guides can be pasted as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_blocks import ROOT, Block, blocks_of, run_python

FOLDER = ROOT / "notebooks" / "guides"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "README.md")
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def anchor(heading: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", BLOCKS, ids=[anchor(block.section) for block in BLOCKS])
def test_guide_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(block.text, f"guide {block.section!r}")


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_each_section_has_one_block_and_a_link_to_it(page: Path) -> None:
    sections = re.findall(r"^## (.*)$", page.read_text(), flags=re.MULTILINE)
    assert sections
    assert [(block.section, block.language) for block in blocks_of(page)] == [(name, "python") for name in sections]
    links = re.findall(rf"^- \[(.*)\]\({page.name}#(.*)\)$", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)
    assert links == [(section, anchor(section)) for section in sections]
