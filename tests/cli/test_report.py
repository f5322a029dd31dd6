"""``lightning-taylor report``: a checkpoint tells what its fit told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


def test_a_checkpoint_says_what_its_fit_said(run: Run, pruned_fit: Path, tmp_path: Path) -> None:
    fit = json.loads((pruned_fit.parent.parent / "pruning.json").read_text())
    code, out, err = run("report", pruned_fit, "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    found = json.loads(page.split('id="pruning">')[1].split("</script>")[0])
    assert (code, err) == (0, "")
    measured = ("environment", "latency", "checkpoint", "config")  # the latter two as whoever ran it names the files
    assert {k: v for k, v in found.items() if k not in measured} == {k: v for k, v in fit.items() if k not in measured}
    assert [Path(found["config"]), Path(fit["config"]).name] == [
        pruned_fit.parent.parent / "config.yaml",
        "config.yaml",
    ]
    assert "Target met after" in out
    assert f"lightning-taylor benchmark {pruned_fit}" in out.splitlines()[-1]
    assert f"lightning-taylor benchmark {pruned_fit}" in page


def test_the_page_lies_beside_the_checkpoint(run: Run, pruned_fit: Path) -> None:
    page = pruned_fit.parent / "pruning.html"
    page.unlink(missing_ok=True)
    assert run("report", pruned_fit)[0] == 0
    page.write_text("of another checkpoint")
    code, _, err = run("report", pruned_fit)
    assert (code, f"{page} exists: give another --output, or --overwrite to replace it" in err) == (2, True)
    assert page.read_text() == "of another checkpoint"
    assert run("report", pruned_fit, "--overwrite")[0] == 0
    assert page.read_text().startswith("<!doctype html>")


def test_the_checkpoint_is_never_replaced_by_its_page(run: Run, pruned_fit: Path) -> None:
    before = pruned_fit.read_bytes()
    code, _, err = run("report", pruned_fit, "--overwrite", "--output", pruned_fit)
    assert (code, "is the checkpoint itself" in err) == (2, True)
    code, _, err = run("report", pruned_fit, "--output", pruned_fit / "page.html")
    assert (code, f"{pruned_fit} is a file, so nothing can be in it" in err) == (2, True)
    assert pruned_fit.read_bytes() == before


def test_a_file_without_a_pruning_is_refused_with_the_reason(run: Run, pruned_fit: Path, tmp_path: Path) -> None:
    content = torch.load(pruned_fit, weights_only=True)
    state = content["callbacks"]["TaylorPruning"]
    cases = {
        "holds no state of TaylorPruning": {},
        "was saved before the first training batch": {"TaylorPruning": {**state, "graph": None, "record": None}},
        "says about its pruning cannot be read (TypeError: ": {"TaylorPruning": {**state, "record": {"events": 3}}},
        "version 99, this release reads": {"TaylorPruning": {**state, "version": 99}},
    }
    for number, (message, callbacks) in enumerate(cases.items()):
        torch.save({**content, "callbacks": callbacks}, tmp_path / f"{number}.ckpt")
        code, _, err = run("report", tmp_path / f"{number}.ckpt")
        assert code == 2
        assert message in err
    assert "no file" in run("report", "no.ckpt")[2]
    assert "is a folder" in run("report", pruned_fit, "--output", tmp_path)[2]
