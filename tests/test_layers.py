"""The house: a module imports only what lies strictly below it, or beside it in its own package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_taylor"
LEVEL = {
    "errors": 0,
    "namesakes": 0,
    "graph": 1,
    "surgery": 2,
    "scores": 2,
    "plan": 2,
    "options": 3,
    "checkpoint": 3,
    "compiling": 3,
    "listening": 3,
    "timetable": 3,
    "host": 4,
    "loading": 5,
    "pruner": 4,
    "guarding": 5,
    "report": 5,
    "study": 6,
    "spotting": 7,
    "session": 8,
    "reporting": 9,
    "together": 9,
    "callback": 10,
    "best": 11,
    "pl": 12,
    "recipes": 11,
    "export": 11,
    "cli": 12,
    "": 13,
}
MAY_USE_LIGHTNING = {
    "checkpoint", "host", "loading", "reporting", "together", "callback", "best", "pl", "recipes", "cli",
    "report/loggers",
}  # fmt: skip
SOURCES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The layer a file belongs to: its package, or its own name."""
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    return inside[0] if inside[0] != "__init__" else ""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_only_downwards(path: Path) -> None:
    own = part(path)
    for name in imports(path):
        if name == "lightning_taylor" or name.startswith("lightning_taylor."):
            other = [*name.split("."), ""][1]
            assert other == own or LEVEL[other] < LEVEL[own], f"{path.name} (layer {own!r}) imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_lightning_is_imported_only_where_the_trainer_is_spoken_to(path: Path) -> None:
    uses = any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in imports(path))
    place = "/".join(path.relative_to(PACKAGE).with_suffix("").parts[:2])
    assert not uses or part(path) in MAY_USE_LIGHTNING or place in MAY_USE_LIGHTNING


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short_enough_to_hold_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
