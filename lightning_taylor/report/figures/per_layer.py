"""How many channels each layer had, and how many it kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_taylor.report.figures.style import (
    BLUE,
    GREY,
    INK,
    LIGHT,
    VERMILLION,
    canvas,
    finite,
    label_rows,
    legend_below,
    plain_axes,
    row_height,
    styled,
)
from lightning_taylor.report.summary import LayerChange, PruningSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "channels_figure",
    "scores_figure",
]


@styled
def channels_figure(summary: PruningSummary) -> Figure | None:
    """A bar per layer in forward order, what it kept in front of what it had; None without layers.

    The figure grows with the layers; of more than 60 only some are named.

    Args:
        summary: its ``layers`` are drawn.
    """
    layers = summary.layers
    if not layers:
        return None
    height = row_height(len(layers), least=0.06)
    kept, had = sum(layer.after for layer in layers), sum(layer.before for layer in layers)
    title = f"Channels per layer: {kept:,} of {had:,} kept"
    figure, (axes,) = canvas(title, height=1.35 + height * len(layers))
    rows = range(len(layers))
    thickness = 0.78 if height > 0.1 else 0.9
    axes.barh(rows, [layer.before for layer in layers], thickness, color=LIGHT, label="before the pruning")
    axes.barh(rows, [layer.after for layer in layers], thickness, color=BLUE, label="after")
    plain_axes(axes, grid="x")
    for row in label_rows(axes, [layer.layer for layer in layers], height):
        colour = INK if layers[row].after != layers[row].before else GREY
        place = axes.get_yaxis_transform()
        axes.text(1, row, _note(layers[row]), transform=place, ha="right", va="center", fontsize=9, color=colour)
    longest = max(len(_note(layer)) for layer in layers)
    axes.set_xlim(0, max(1, *(layer.before for layer in layers)) / (0.98 - 0.033 * longest))
    axes.set_xlabel("output channels (number); kept/before at the right", loc="right")
    axes.spines["left"].set_visible(False)
    legend_below(figure)
    return figure


def _note(layer: LayerChange) -> str:
    """For a column at the right, where no bar ends; only one number if nothing changed."""
    return f"{layer.after}/{layer.before}" if layer.after != layer.before else f"{layer.before}"


_MANY = 40  # groups, from which on boxes would be too thin to see

_FAR = 20  # times the middle group's median, from which on a group hides the others

_WHEN = {"first": BLUE, "last": VERMILLION}

_Quantiles = Mapping[str, Sequence[float]]  # group -> the quantiles 0, .05, .25, .5, .75, .95, 1


@styled
def scores_figure(summary: PruningSummary) -> Figure | None:
    """A pair of boxes per group: the middle half of its channels' scores, with the median and whiskers at 5 and 95 %.

    Of more than 40 groups, a pair of bands that run through all of them: the middle half, and a line for the median.
    Where a group's scores are twenty times as large as most others', the axis is logarithmic.

    Args:
        summary: its ``scores`` are drawn.

    Returns:
        None without scores.
    """
    drawn = {when: _drawable(summary.scores.get(when, {})) for when in _WHEN}
    groups = list(dict.fromkeys(group for scores in drawn.values() for group in scores))
    if not groups:
        return None
    many = len(groups) > _MANY
    height = row_height(len(groups), least=0.06)
    figure, (axes,) = canvas("Scores of the channels, per group", height=1.55 + height * len(groups))
    for (when, colour), offset in zip(_WHEN.items(), (0.0, 0.0) if many else (-0.2, 0.2), strict=True):
        rows = [(groups.index(group) + offset, values) for group, values in drawn[when].items()]
        if rows:
            draw = _bands if many else _boxes
            draw(axes, rows, colour, f"before the {when} event")
    plain_axes(axes, grid="x")
    if small := _one_hides_the_others(drawn):
        positive = all(values[1] > 0 for scores in drawn.values() for values in scores.values())
        axes.set_xscale("log") if positive else axes.set_xscale("symlog", linthresh=small)
        axes.xaxis.set_major_formatter("{x:g}")  # matplotlib's own writes formulas
    label_rows(axes, groups, height)
    marks = "band: middle half, line: median" if many else "box: middle half, whiskers: 5 to 95 %"
    axes.set_xlabel(f"normalised score (no unit)\n{marks}", loc="right", multialignment="right")
    axes.spines["left"].set_visible(False)
    legend_below(figure)
    return figure


def _boxes(axes: Axes, rows: Sequence[tuple[float, Sequence[float]]], colour: str, label: str) -> None:
    """All boxes at once: ``Axes.bxp`` makes seven artists of each, which takes seconds for a deep network."""
    y = [row for row, _ in rows]
    _, low, first, median, third, high, _ = zip(*(values for _, values in rows), strict=True)
    axes.hlines(y, low, high, color=colour, linewidth=1)
    width = [b - a for a, b in zip(first, third, strict=True)]
    axes.barh(y, width, 0.34, left=first, color=colour, alpha=0.55, edgecolor=colour, linewidth=0.8, label=label)
    axes.vlines(median, [at - 0.17 for at in y], [at + 0.17 for at in y], color=colour, linewidth=2)


def _bands(axes: Axes, rows: Sequence[tuple[float, Sequence[float]]], colour: str, label: str) -> None:
    y = [row for row, _ in rows]
    _, _, first, median, third, _, _ = zip(*(values for _, values in rows), strict=True)
    axes.fill_betweenx(y, first, third, color=colour, alpha=0.3, linewidth=0, step="mid", label=label)
    axes.plot(median, y, color=colour, linewidth=1.5)


def _one_hides_the_others(drawn: Mapping[str, _Quantiles]) -> float | None:
    """Return a small score, up to which the axis stays linear, if all but one group would be lines at its left end."""
    medians = sorted(abs(values[3]) for scores in drawn.values() for values in scores.values() if values[3])
    largest = max((abs(values[5]) for scores in drawn.values() for values in scores.values()), default=0.0)
    return medians[0] if medians and largest > _FAR * medians[len(medians) // 2] else None


def _drawable(scores: _Quantiles) -> _Quantiles:
    return {group: values for group, values in scores.items() if finite(values)}
