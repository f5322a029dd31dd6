from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
import zoo

from lightning_taylor import trace_channels
from lightning_taylor.fit.report import QUANTILES, FitReport
from lightning_taylor.measure.environment import peak_memory, state_dict_bytes
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.record import Event, Record
from lightning_taylor.plan.target import Target
from lightning_taylor.report.notes import ReportNotes
from lightning_taylor.report.summary import Change, LayerChange, PruningSummary, widths_after, widths_now
from lightning_taylor.utilities.calls import ForwardCall
from lightning_taylor.utilities.plain import from_plain, to_plain


def test_a_summary_sets_before_and_after_side_by_side(summary):
    assert summary.flops == Change(80, 20)
    assert summary.params == Change(40, 10)
    assert summary.channels == Change(8, 2)
    assert summary.layers == (LayerChange("first", 8, 2, 48, 12, 24, 6), LayerChange("second", 2, 2, 32, 8, 16, 4))
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


@pytest.mark.parametrize("name", ["residual", "concat", "inverted", "option_a"])
def test_the_widths_after_each_event_are_those_of_the_graph_then(name):
    graph = trace_channels(zoo.NETS[name][0](), torch.randn(2, 3, 12, 12))
    record, expected = Record(), []
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        remove = graph.sample(0.3, generator) if step != 2 else {}  # one event that removes nothing
        graph = graph.shrink(remove)
        cost = CostModel(graph).now
        removed = {group: index_R.tolist() for group, index_R in remove.items()}
        record.append(Event(step, removed, cost.flops, cost.params, cost.channels, seconds=0.1))
        expected.append({layer: graph.width(graph.layers[layer]) for layer in widths_now(graph)})
    assert widths_after(graph, record) == tuple(expected)
    assert expected[0] != expected[1] == expected[2] != expected[3]
    assert set(expected[0]) <= set(graph.layers)


def test_scores_curve_and_environment_travel_into_the_file(dense, tmp_path):
    curve = [{"step": 3, "flops": 80, "val_acc": 0.9}, {"step": 9, "flops": 20, "val_acc": float("nan")}]
    scores = {"first": {"first": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}}
    summary = PruningSummary.of(dense, curve=curve, scores=scores, environment={"batch_size": 8})
    found = json.loads(summary.write_json(tmp_path / "pruning.json").read_text())
    assert found["curve"] == [curve[0], {**curve[1], "val_acc": None}]
    assert found["scores"] == scores
    assert found["widths"] == []
    assert found["environment"] == {"batch_size": 8}


def test_the_notes_of_a_report_come_back_and_those_of_an_earlier_release_as_well():
    report = FitReport()
    report.note_scores({"a": torch.tensor([0.5, 0.1]), "b": torch.tensor([1.0])})
    report.note_scores({"a": torch.tensor([0.7])})
    report.note_scores({})  # as on a rank that decided nothing
    assert report.notes.scores["first"]["a"] == pytest.approx([0.1, 0.12, 0.2, 0.3, 0.4, 0.48, 0.5])
    assert report.notes.scores["last"] == {"a": pytest.approx([0.7] * len(QUANTILES))}
    again = FitReport()
    again.load(from_plain(ReportNotes, to_plain(report.notes)))
    assert again.notes == report.notes
    old = {name: value for name, value in to_plain(report.notes).items() if name != "scores"}
    assert from_plain(ReportNotes, old).scores == {}


def test_the_notes_say_one_example_of_a_call_unless_it_cannot_be_cut():
    x, row, state = torch.zeros(20, 5), torch.zeros(1, 5), torch.zeros(1, 20, 16)
    for other, shapes in ((row, [[1, 5], [1, 5]]), (state, [[20, 5], [1, 20, 16]])):
        report = FitReport()
        report.begin([ForwardCall("", (x, other))])
        assert [described["shape"] for described in report.notes.called_with[0]["args"]] == shapes


def test_a_baseline_of_the_user_s_outlives_that_of_a_checkpoint():
    report = FitReport({"acc": 0.9})
    report.load(ReportNotes({}, {}, [], baseline={"acc": 0.8}))
    assert report.notes.baseline == {"acc": 0.9}


def test_a_state_dict_weighs_what_its_file_does(tmp_path):
    net = zoo.Residual()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    # The name of the file is in it, once per entry.
    assert state_dict_bytes(net) == pytest.approx((tmp_path / "net.pt").stat().st_size, rel=0.05)


def test_measuring_the_memory_draws_no_random_number():
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout()).train()
    x = torch.randn(2, 8)
    before = torch.get_rng_state()
    entries = 8 * 8 + 8 + 3 * 2 * 8  # weights; input, and what the layer gives and the dropout makes of it
    assert peak_memory(lambda: net(x), [*net.parameters(), x]) >= 4 * entries
    assert torch.equal(torch.get_rng_state(), before)
