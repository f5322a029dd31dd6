"""The commands take a checkpoint that an earlier release wrote; see ``fit/version_1.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fit import version_1

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return version_1.unpacked(tmp_path)


def test_inspect_shows_its_events(run: Run, path: Path) -> None:
    code, out, err = run("inspect", path, "--json")
    assert (code, err) == (0, "")
    assert [event["step"] for event in json.loads(out)["events"]] == [12, 16, 20]


def test_report_makes_its_page(run: Run, path: Path) -> None:
    code, out, err = run("report", path)
    assert (code, err) == (0, "")
    assert "net.stem" in out
    assert path.with_name("pruning.html").is_file()


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_export_takes_the_widths_and_the_inputs_that_it_tells(run: Run, path: Path) -> None:
    output = path.with_name("net.pt2")
    code, _, err = run(
        "export", path, "--format=torch_export", "--model=fit.version_1.Views", "--submodule=net", "--output", output
    )
    assert (code, output.is_file()) == (0, True), err
