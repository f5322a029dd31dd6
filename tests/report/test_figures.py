from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from lightning_taylor.report.figures import figures, save_figures
from lightning_taylor.report.figures.accuracy import accuracy_figure, is_a_cost
from lightning_taylor.report.summary import Change, LayerChange

NASTY = "<b>$x_{y}^$\n[0] 层 & \\frac"


def quantiles(middle):
    return tuple(middle * factor for factor in (0.1, 0.4, 0.8, 1.0, 1.3, 2.0, 3.0))


@pytest.fixture
def full(summary):
    """Three events, five validations, two groups."""
    sizes = [(5, 60, 30, 6), (10, 40, 20, 4), (15, 20, 10, 2)]
    events = tuple(
        {"step": s, "removed": 2, "flops": f, "params": p, "channels": c, "seconds": s / 10} for s, f, p, c in sizes
    )
    rows = [(1, 80, 0.1), (4, 80, 0.9), (8, 60, 0.85), (14, 40, 0.8), (19, 20, 0.875)]
    curve = tuple({"step": s, "flops": f, "val_acc": a, "val_loss": 1 - a} for s, f, a in rows)
    scores = {"first": {"a": quantiles(0.1), "b": quantiles(0.3)}, "last": {"a": quantiles(0.2), "b": quantiles(0.3)}}
    return replace(summary, events=events, curve=curve, scores=scores)


def deep(summary, layers):
    """As many layers with long names, each a group with scores."""
    names = [f"backbone.features.stage{i // 40}.layer{i % 40}.conv{i % 3}" for i in range(layers)]
    scores = {name: quantiles(0.05 + 0.001 * i) for i, name in enumerate(names)}
    changes = tuple(LayerChange(name, 64 << (i // 40), 16 + i) for i, name in enumerate(names))
    return replace(summary, layers=changes, scores={"first": scores, "last": scores})


@pytest.mark.slow
def test_every_layer_of_a_resnet50_has_its_name(summary):
    """It has 54, and as many groups less one."""
    for name in ("channels", "scores"):
        (axes,) = dict(figures(deep(summary, 54)))[name].axes
        assert len(axes.get_yticks()) == 54
        assert len(dict(figures(deep(summary, 200)))[name].axes[0].get_yticks()) < 200


def drawn(figure):
    """The figure on a thumbnail of 320 pixels: what draws it, and its texts with their boxes there."""
    figure.set_dpi(320 / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in outside(axis)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if text not in unseen]
    return canvas, [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts]


def outside(axis):
    """Labels of ticks that matplotlib keeps but does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [label for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high for label in labels_of(tick)]


def labels_of(tick):
    return tick.label1, tick.label2


def overlapping(boxes):
    """Pairs of texts that cover each other by more than the space around their letters."""
    found = []
    for i, (text, box) in enumerate(boxes):
        for other_text, other in boxes[i + 1 :]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            if wide > 1 and high > 3:
                found.append((text, other_text))
    return found


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def bar_widths(figure):
    return [[bar.get_width() for bar in bars] for bars in figure.axes[0].containers]


def test_a_summary_has_a_picture_of_everything_it_has_data_for(summary, full):
    assert list(figures(full)) == ["channels", "accuracy", "timeline", "scores"]
    assert list(figures(summary)) == ["channels", "timeline"]
    assert list(figures(replace(summary, layers=(), events=()))) == []


@pytest.mark.slow
@pytest.mark.parametrize("which", ["full", "deep", "one layer"])
def test_every_picture_has_a_title_and_units_and_can_be_read_320_pixels_wide(summary, full, which):
    shown = {"full": full, "deep": deep(full, 160), "one layer": deep(full, 1)}[which]
    for name, figure in figures(shown).items():
        canvas, boxes = drawn(figure)
        width, height = canvas.get_width_height()
        assert width == 320, name
        assert height < 900, name
        assert len(figure.get_suptitle()) > 5, name
        labels = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()] + [
            axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()
        ]
        assert any(unit in label for unit in ("(number)", "(%", "(no unit)") for label in labels), labels
        assert overlapping(boxes) == [], name
        for text, box in boxes:
            assert -1 <= box.x0 <= box.x1 <= width + 1, (name, text)
            assert -1 <= box.y0 <= box.y1 <= height + 1, (name, text)
            assert min(box.width, box.height) >= 5, (name, text)


def test_bars_are_as_long_as_the_channels_are_many(full):
    assert bar_widths(figures(full)["channels"]) == [[8, 2], [2, 2]]


def test_a_long_list_grows_and_names_only_what_has_space(summary):
    few, many = (figures(deep(summary, layers))["channels"] for layers in (10, 160))
    assert len(few.axes[0].get_yticks()) == 10
    assert 20 <= len(many.axes[0].get_yticks()) <= 60
    assert many.get_figheight() > 2 * few.get_figheight()
    assert [len(widths) for widths in bar_widths(many)] == [160, 160]


def test_the_accuracy_runs_from_the_trained_dense_network_to_the_pruned_one(full):
    axes = figures(full)["accuracy"].axes[0]
    (line,) = [line for label, line in lines(axes).items() if label.startswith("val_acc")]
    assert line.get_label() == "val_acc: 0.9 → 0.875"
    np.testing.assert_allclose(line.get_xdata(), [100, 75, 50, 25])
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.85, 0.8, 0.875])
    left, right = axes.get_xlim()
    assert left > 100 > 25 > right
    assert not [label for label in lines(axes) if "loss" in label]


def test_a_loss_is_drawn_if_there_is_nothing_else(full):
    rows = tuple({name: row[name] for name in ("step", "flops", "val_loss")} for row in full.curve)
    figure = accuracy_figure(replace(full, curve=rows))
    assert figure.get_suptitle() == "val_loss against FLOPs"


def test_metrics_of_different_scales_do_not_share_an_axis(full):
    rows = tuple({**row, "psnr": 30 + row["val_acc"], "iou": 0.5} for row in full.curve)
    panels = accuracy_figure(replace(full, curve=rows)).axes
    labels = [[label.split(":")[0] for label in lines(axes) if "→" in label] for axes in panels]
    assert labels == [["val_acc", "iou"], ["psnr"]]


def test_a_change_of_a_few_images_does_not_look_like_a_fall(full):
    rows = tuple({**row, "val_acc": 0.99 + row["val_acc"] / 1000} for row in full.curve)
    low, high = accuracy_figure(replace(full, curve=rows)).axes[0].get_ylim()
    assert low < 0.99
    assert 1 < high < 1.01
    assert 0.02 <= high - low < 0.03


def test_validations_that_saw_no_removal_are_no_picture(full):
    assert accuracy_figure(replace(full, curve=full.curve[:2])) is None


def test_a_value_that_is_not_finite_is_left_out(full):
    curve = (*full.curve[:3], {**full.curve[3], "val_acc": math.nan}, full.curve[4])
    scores = {"first": {"a": quantiles(math.nan), "b": quantiles(0.1)}}
    made = figures(replace(full, curve=curve, scores=scores))
    (line,) = [line for label, line in lines(made["accuracy"].axes[0]).items() if label.startswith("val_acc")]
    assert list(line.get_ydata()) == [0.9, 0.85, 0.875]
    assert [tick.get_text() for tick in made["scores"].axes[0].get_yticklabels()] == ["b"]


@pytest.mark.parametrize(
    ("name", "cost"),
    [("val_loss", True), ("val/CrossEntropy", True), ("WER", True), ("val_acc", False), ("recall", False)],
)
def test_a_metric_is_known_by_the_words_in_its_name(name, cost):
    assert is_a_cost(name) is cost


def test_the_timeline_falls_at_each_event_and_runs_to_the_last_step(full):
    upper, lower = figures(full)["timeline"].axes
    flops = lines(upper)["FLOPs: 25 %"]
    np.testing.assert_allclose(flops.get_xdata(), [0, 5, 10, 15, 19])
    np.testing.assert_allclose(flops.get_ydata(), [100, 75, 50, 25, 25])
    assert flops.get_drawstyle() == "steps-post"
    needles = [segment[1].tolist() for segment in lower.collections[0].get_segments()]
    assert needles == [[5, 0.5], [10, 1.0], [15, 1.5]]


def test_a_box_spans_the_middle_half_of_a_groups_scores(full):
    first, _ = figures(full)["scores"].axes[0].containers
    np.testing.assert_allclose(
        [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in first], [(0.08, 0.13), (0.24, 0.39)]
    )


@pytest.mark.parametrize("low", [0.01, -0.01])
def test_one_group_does_not_hide_the_others(full, low):
    assert figures(full)["scores"].axes[0].get_xscale() == "linear"
    one = {f"g{i}": (0.0, low, 0.02, 0.03, 0.04, 0.05, 0.06) for i in range(30)}
    scores = {"first": {**one, "head": (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0)}}
    (axes,) = figures(replace(full, scores=scores))["scores"].axes
    place = axes.transData.transform
    bars = axes.containers[0]
    left, right = (place((x, 0))[0] for x in (bars[0].get_x(), bars[0].get_x() + bars[0].get_width()))
    assert right - left > 0.05 * axes.get_window_extent().width


@pytest.mark.slow
def test_names_are_shown_as_they_are_and_never_taken_for_formulas(full):
    shown = replace(
        full,
        layers=(LayerChange(NASTY, 8, 4),),
        curve=tuple({**row, NASTY: 0.5} for row in full.curve),
        scores={"first": {NASTY: quantiles(0.1)}},
    )
    made = figures(shown)
    for figure in made.values():
        figure.savefig(BytesIO(), format="png")
    (label,) = made["channels"].axes[0].get_yticklabels()
    assert label.get_text() == "<b>$x_{y}^$\ufffd[0] \ufffd & \\frac"


@pytest.mark.slow
def test_the_users_settings_neither_change_a_picture_nor_are_changed(full):
    plain = save_bytes(full)
    with warnings.catch_warnings(), matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        assert save_bytes(full) == plain
        assert dict(matplotlib.rcParams) == before


def save_bytes(summary):
    from lightning_taylor.report.figures.style import png

    return [png(figure) for figure in figures(summary).values()]


@pytest.mark.slow
def test_saved_pictures_are_whole_png_files(full, tmp_path):
    paths = save_figures(full, tmp_path / "new")
    assert [path.name for path in paths] == [f"pruning_{name}.png" for name in figures(full)]
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert data.rstrip().endswith(b"IEND\xaeB`\x82")


def test_pyplot_knows_nothing_of_the_pictures(full, tmp_path):
    backend = matplotlib.get_backend()
    save_figures(full, tmp_path)
    assert pyplot.get_fignums() == []
    assert matplotlib.get_backend() == backend


def test_without_matplotlib_the_error_names_the_extra(full, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-taylor\[plots\]'"):
        figures(full)


def test_a_network_that_had_nothing_is_drawn_all_the_same(full):
    nothing = replace(
        full,
        curve=tuple({**row, "flops": 0} for row in full.curve),
        flops=Change(0, 0),
        params=Change(0, 0),
        channels=Change(0, 0),
    )
    assert set(figures(nothing)) == {"channels", "timeline", "scores"}
