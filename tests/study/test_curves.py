"""Curves of a metric against what remains: points on them, files of them, tables and pictures of them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lightning_taylor.study.curve_table import CurveTable, measured_steps
from lightning_taylor.study.curves import DENSE, Curve, CurveFile, CurvePoint
from lightning_taylor.utilities.plain import from_plain


def curve(name: str, seed: int, *points: tuple[float, float]) -> Curve:
    """From (FLOPs, metric) pairs; ten steps lie between two of them."""
    at = enumerate(points)
    return Curve(name, seed, tuple(CurvePoint(10 * n, flops, flops, flops, metric) for n, (flops, metric) in at))


def test_between_two_points_the_metric_lies_on_a_line() -> None:
    fallen = curve("Taylor", 0, (1.0, 0.9), (0.6, 0.7), (0.2, 0.3))
    assert fallen.at(0.8) == pytest.approx(0.8)
    assert fallen.at(0.5) == pytest.approx(0.6)
    assert fallen.at(0.6) == pytest.approx(0.7)
    assert fallen.at(1.0) == 0.9


def test_a_network_that_was_never_so_small_has_no_metric_there() -> None:
    assert curve("Taylor", 0, (1.0, 0.9), (0.6, 0.7)).at(0.5) is None


def test_fine_tuning_at_the_same_size_does_not_count_as_the_way_there() -> None:
    recovered = curve("Taylor", 0, (1.0, 0.9), (0.5, 0.6), (0.5, 0.8))
    assert recovered.at(0.5) == pytest.approx(0.6)
    assert recovered.last.metric == 0.8


@pytest.mark.parametrize(
    ("events", "points", "steps"),
    [
        ([10, 20, 30, 40], 4, [19, 29, 39, 49, 100]),
        ([10, 20, 30, 40], 2, [29, 49, 100]),
        ([10, 20, 30, 40], 1, [49, 100]),
        ([10, 20, 30, 40], 50, [19, 29, 39, 49, 100]),
        ([10, 20, 30, 32], 4, [19, 29, 31, 41, 100]),
        ([98, 99, 100], 3, [98, 99, 100]),
        ([5, 6, 7], 3, [5, 6, 7, 100]),
        ([30], 10, [30, 100]),
        ([], 10, [100]),
    ],
)
def test_an_event_is_measured_before_the_next_one(events: list[int], points: int, steps: list[int]) -> None:
    assert measured_steps(events, 100, points) == steps


def test_a_file_gives_back_the_runs_that_were_put_in(tmp_path: Path) -> None:
    runs = [curve("Taylor", 0, (1.0, 0.9), (0.5, 0.7)), curve("Random", 1, (1.0, 0.8), (0.5, 0.4))]
    file = CurveFile(tmp_path / "curves.jsonl")
    for run in runs:
        file.add(run, {"metric": "acc", "checkpoint": "a1"})
    again = CurveFile(tmp_path / "curves.jsonl")
    assert again.curves == runs
    assert again.setting("metric") == "acc"
    assert len((tmp_path / "curves.jsonl").read_text().splitlines()) == 2


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    file = CurveFile(tmp_path / "curves.jsonl")
    file.add(curve("Taylor", 3, (1.0, 0.9)), {"target": 0.2, "lr": 0.1, "checkpoint": "a1"})
    file.check({"target": 0.2, "lr": 0.1}, {3: "a1", 4: "b2"})
    file.check({"target": 0.2, "lr": 0.1}, {4: "b2"})
    with pytest.raises(ValueError, match=r"seed 3: target=0.3, which was 0.2\)"):
        file.check({"target": 0.3, "lr": 0.1}, {3: "a1"})
    with pytest.raises(ValueError, match=r"checkpoint=b2, which was a1"):
        file.check({"target": 0.2, "lr": 0.1}, {3: "b2"})
    with pytest.raises(ValueError, match=r"lr=None, which was 0.1"):
        file.check({"target": 0.2}, {3: "a1"})


@pytest.mark.parametrize("text", ['{"criterion": "Taylor"', '{"criterion": "Taylor"}', "[]", '{"settings": 1}'])
def test_what_is_no_file_of_curves_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "curves.jsonl").write_text(text + "\n")
    with pytest.raises(ValueError, match="holds no curves"):
        CurveFile(tmp_path / "curves.jsonl")


@pytest.fixture
def table() -> CurveTable:
    return CurveTable(
        [
            curve("Taylor", 0, (1.0, 0.9), (0.5, 0.7), (0.5, 0.85)),
            curve("Taylor", 1, (1.0, 0.9), (0.5, 0.5), (0.5, 0.75)),
            curve("Random", 0, (1.0, 0.9), (0.2, 0.1), (0.2, 0.5)),
            curve("Random", 1, (1.0, 0.9), (0.6, 0.5), (0.6, 0.6)),
            curve(DENSE, 0, (1.0, 0.9), (1.0, 0.9), (1.0, 0.92)),
            curve(DENSE, 1, (1.0, 0.9), (1.0, 0.9), (1.0, 0.94)),
        ],
        "val_acc",
    )


def test_the_table_has_mean_and_deviation_of_the_seeds(table: CurveTable) -> None:
    cell = table.cell("Taylor", 0.5)
    assert cell is not None
    assert cell.mean == pytest.approx(0.6)
    assert cell.sd == pytest.approx(0.02**0.5)
    assert str(table.end("Taylor")) == "0.800 ±0.071"
    assert table.cell("Random", 0.5) is None, "one of its seeds was never that small"
    assert table.criteria == [DENSE, "Taylor", "Random"]


def test_the_table_is_shown_within_80_columns(table: CurveTable) -> None:
    text = StringIO()
    table.show(Console(file=text, width=80))
    rows = {line.split()[0]: line.split()[1:] for line in text.getvalue().splitlines() if "±" in line and "%" in line}
    assert rows["Taylor"] == ["0.750", "±0.071", "0.600", "±0.141", "-", "0.800", "±0.071", "50", "%"]
    assert rows["dense"][:3] == ["-", "-", "-"]
    assert "interpolated" in text.getvalue()


def test_the_same_is_there_as_data(table: CurveTable) -> None:
    plain = json.loads(json.dumps(table.to_plain()))
    assert plain["criteria"]["Taylor"]["at_flops"]["0.5"]["mean"] == pytest.approx(0.6)
    assert plain["criteria"]["Taylor"]["at_flops"]["0.3"] is None
    assert plain["criteria"]["Random"]["flops_at_end"] == pytest.approx(0.4)
    assert from_plain(Curve, plain["curves"][-1]) == curve("Random", 1, (1.0, 0.9), (0.6, 0.5), (0.6, 0.6))


def test_one_seed_has_no_deviation() -> None:
    assert str(CurveTable([curve("Taylor", 0, (1.0, 0.9), (0.5, 0.7))], "acc").cell("Taylor", 0.5)) == "0.700"


def test_a_table_needs_a_curve() -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        CurveTable([], "acc")


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra plots")
def test_the_picture_has_a_panel_for_channels_and_one_for_flops(table: CurveTable) -> None:
    panels = table.figure().axes
    assert ["channels" in panels[0].get_xlabel(), "FLOPs" in panels[1].get_xlabel()] == [True, True]
    for axes in panels:
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert list(lines["Taylor"].get_xdata()) == [100.0, 50.0, 50.0]
        assert list(lines["Taylor"].get_ydata()) == pytest.approx([0.9, 0.6, 0.8])
        assert list(lines["dense, equal steps"].get_ydata()) == pytest.approx([0.93, 0.93])
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == pytest.approx((0.5, 0.9))
        assert axes.xaxis_inverted()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra plots")
def test_many_criteria_can_be_told_apart() -> None:
    names = [f"criterion {n}" for n in range(13)]
    figure = CurveTable([curve(name, 0, (1.0, 0.9), (0.5, 0.7)) for name in names], "acc").figure()
    looks = [
        (line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines() if line.get_label() in names
    ]
    assert len(set(looks)) == 13


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra plots")
def test_noise_is_not_blown_up_to_the_height_of_the_picture() -> None:
    low, high = CurveTable([curve("Taylor", 0, (1.0, 0.991), (0.5, 0.99))], "acc").figure().axes[0].get_ylim()
    assert high - low > 0.02
