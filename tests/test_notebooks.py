"""The notebooks run from the first cell to the last, and what they show was put there by running them.

After a change of a notebook, or of what it shows: ``WRITE_NOTEBOOKS=1 pytest tests/test_notebooks.py``, and look.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("matplotlib", reason="needs the extra plots")
pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("sklearn", reason="needs the extra recipes")

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
LARGEST = 300_000  # bytes: a clone should not notice them
ABSOLUTE_PATH = re.compile(r"(?<![\w<.:/-])(?:/[\w.@+-]+){2,}|\b[A-Za-z]:\\\w")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a kernel inherits: the commands of this Python, one thread, and nowhere to write but here."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: NotebookNode) -> Iterator[str]:
    """All that the outputs say in words."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from (text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def kinds(notebook: NotebookNode) -> list[set[str]]:
    """Of each code cell: whether it printed, and what it displayed. Messages on stderr differ between machines."""
    return [{kind for output in cell.outputs for kind in _kinds(output)} for cell in code_cells(notebook)]


def _kinds(output: Any) -> list[str]:
    if output.output_type == "stream":
        return [output.name] if output.name != "stderr" else []
    return list(output.get("data", {"error": ""}))


def check(notebook: NotebookNode) -> None:
    """Executed in order, without an error, and showing at least one picture and nothing of the machine."""
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert not [text for text in texts(notebook) if "Traceback (most recent call last)" in text]
    assert "image/png" in set().union(*kinds(notebook))
    assert "error" not in set().union(*kinds(notebook))
    assert not [found[0] for text in texts(notebook) if (found := ABSOLUTE_PATH.search(text))]


@each_notebook
def test_what_is_stored_is_the_outcome_of_a_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    assert path.stat().st_size <= LARGEST


@pytest.mark.slow
@each_notebook
def test_notebook_runs(path: Path, environment: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(environment)}},
    ).execute()
    check(notebook)
    if os.environ.get("WRITE_NOTEBOOKS"):
        nbformat.write(notebook, path)
        return
    assert kinds(notebook) == kinds(stored)


@pytest.mark.parametrize(
    "text", ["in /home/me/file", "(/tmp/x)", "'/usr/lib/python3/site.py:3: UserWarning'", "C:\\Users"]
)
def test_a_path_of_the_machine_is_recognised(text: str) -> None:
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["logs/digits/metrics.csv", "<pre>a</pre>", "https://a.b/c/d", "1/3/4", "and/or"])
def test_what_only_looks_like_a_path_is_not(text: str) -> None:
    assert not ABSOLUTE_PATH.search(text)
