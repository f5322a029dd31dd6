from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from lightning_taylor.plan import Event, Record, Target
from lightning_taylor.report import Change, LayerChange, PruningSummary


def test_a_summary_sets_before_and_after_side_by_side(summary):
    assert summary.flops == Change(80, 20)
    assert summary.params == Change(40, 10)
    assert summary.channels == Change(8, 2)
    assert summary.layers == (LayerChange("first", 8, 2), LayerChange("second", 2, 2))
    assert summary.achieved == {"flops": 0.25, "params": 0.25, "channels": 0.25}
    assert summary.metrics == {"val_acc": Change(0.9, 0.875)}
    assert summary.events == ({"step": 5, "removed": 6, "flops": 20, "params": 10, "channels": 2, "seconds": 0.5},)


@pytest.mark.parametrize(("fraction", "met"), [(0.25, True), (0.249, False)])
def test_a_summary_says_whether_the_target_was_met(summary, fraction, met):
    assert replace(summary, asked={"flops": 0.9, "params": fraction}).met is met


def test_a_measured_target_is_judged_by_what_the_last_event_measured(summary, dense):
    target = Target(flops=0.5, latency=0.7, memory=0.6)
    last = Event(5, {}, 20, 10, 2, seconds=0.5, measured={"latency": 0.65, "memory": 0.6})
    shrunk = dense.shrink({"first": range(6)})
    found = PruningSummary.of(shrunk, target, record=Record([last]))
    assert found.met
    assert found.achieved == {**summary.achieved, "latency": 0.65, "memory": 0.6}
    assert not PruningSummary.of(shrunk, target, record=Record([replace(last, measured={})])).met


def test_a_summary_of_a_dense_graph_has_lost_nothing(dense):
    summary = PruningSummary.of(dense, Target(flops=0.5))
    assert set(summary.achieved.values()) == {1.0}
    assert not summary.met


def test_a_written_summary_reads_back_as_its_plain_form(summary, tmp_path):
    path = summary.write_json(tmp_path / "new" / "pruning.json")
    assert json.loads(path.read_text()) == summary.to_plain()
    assert os.listdir(path.parent) == ["pruning.json"]


def test_a_number_that_is_not_finite_becomes_null(summary, tmp_path):
    broken = replace(summary, metrics={"loss": Change(float("nan"), float("inf"))})
    path = broken.write_json(tmp_path / "pruning.json")
    assert json.loads(path.read_text())["metrics"] == {"loss": {"before": None, "after": None}}


def test_a_failed_write_leaves_the_old_file_alone(summary, tmp_path):
    path = summary.write_json(tmp_path / "pruning.json")
    old = path.read_text()
    with pytest.raises(TypeError, match="not JSON serializable"):
        replace(summary, unscored={"first": object()}).write_json(path)
    assert path.read_text() == old
    assert os.listdir(tmp_path) == ["pruning.json"]


def test_a_written_file_can_be_read_by_whoever_the_umask_allows(summary, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert summary.write_json(tmp_path / "pruning.json").stat().st_mode == plain.stat().st_mode
