"""The house: a module imports only what lies strictly below its layer, and no package has a circle of imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "lightning_taylor"
LAYERS = (
    ("errors", "utilities", "recipes"),
    ("graph",),
    ("modules",),
    ("trace", "surgery", "scores", "measure", "checkpoint", "export"),
    ("criteria", "plan"),
    ("report",),
    ("study",),
    ("fit",),
    ("cli", "pl", "extend", ""),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MAY_USE_LIGHTNING = {"fit", "recipes", "cli", "pl", "checkpoint/load"}
MOST_CODE_LINES = 220
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return a file's name inside the package: ``trace/ops/conv``; that of its folder for an ``__init__``."""
    return "/".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("/")


MODULES = {name_of(path): path for path in SOURCES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Return every name that a file imports, from inside functions too, with dots as they are written."""
    names: list[str] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def inside(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports."""
    for name in imports(path):
        if name.split(".")[0] == "lightning_taylor":
            inner = "/".join(name.split(".")[1:])
            yield inner if inner in MODULES else inner.rpartition("/")[0]


def circle() -> list[str]:
    """Return modules of which each imports the next and the last the first; empty if there are none."""
    done: set[str] = set()

    def search(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in inside(MODULES[name]):
                if found := search(other, (*path, name)):
                    return found
            done.add(name)
        return []

    return next((found for name in MODULES if (found := search(name, ()))), [])


def test_imports_point_only_downwards() -> None:
    pairs = [(name, other) for name, path in MODULES.items() for other in inside(path)]
    rooms = [(name, other, name.split("/")[0], other.split("/")[0]) for name, other in pairs]
    assert [
        f"{name} imports {other}" for name, other, own, its in rooms if own != its and LEVEL[its] >= LEVEL[own]
    ] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle() == []


def test_lightning_is_imported_only_where_the_trainer_is_spoken_to() -> None:
    users = [
        name
        for name, path in MODULES.items()
        if any(other.split(".")[0] in ("lightning", "pytorch_lightning") for other in imports(path))
    ]
    assert "fit/callback" in users
    assert [name for name in users if not {name, name.split("/")[0]} & MAY_USE_LIGHTNING] == []


def code_lines(path: Path) -> int:
    """Count the lines of a file that hold code: docstrings, comments, imports and ``__all__`` left out."""
    tree = parsed(path)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        listing = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if text or listing or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(path.read_text().splitlines(), start=1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for n, line in lines if n not in left_out)


def test_a_file_holds_one_idea() -> None:
    lines = {name: code_lines(path) for name, path in MODULES.items()}
    assert max(lines.values()) > 100, "nothing was counted"
    assert {name: count for name, count in lines.items() if count > MOST_CODE_LINES} == {}
