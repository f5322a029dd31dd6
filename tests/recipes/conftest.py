from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

# Before any test: its import sets an environment variable, which a test must not.
pytest.importorskip("sklearn", reason="the recipes need the extra of that name")

MakeFolder = Callable[[Mapping[str, Sequence[str]]], Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes ``{split: classes}`` as two small images a class, whose colour tells the class."""

    def make(splits: Mapping[str, Sequence[str]]) -> Path:
        for split, classes in splits.items():
            for colour, name in enumerate(classes):
                folder = tmp_path / split / name
                folder.mkdir(parents=True)
                for number in range(2):
                    Image.new("RGB", (20, 16), (60 * colour, 0, 100 * number)).save(folder / f"{number}.png")
        return tmp_path

    return make
