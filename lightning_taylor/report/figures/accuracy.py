"""What the pruning cost: validation metrics against the FLOPs that remained when they were measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_taylor.report.figures.style import (
    COLOURS,
    GREY,
    MARKERS,
    canvas,
    finite,
    legend_below,
    plain_axes,
    shorten,
    styled,
)
from lightning_taylor.report.summary import PruningSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_figure", "is_a_cost"]

_COSTS = set("loss error err mse rmse mae mape nll ppl perplexity ce bce kl fid lpips wer cer bpc bpd entropy".split())
_MOST = len(COLOURS)
_LEAST = 0.02  # of a metric in [0, 1]: a few images more or less, in most validation sets
_Curve = list[tuple[float, float]]  # (% of the FLOPs, value) in the order of the run


@styled
def accuracy_figure(summary: PruningSummary) -> Figure | None:
    """Fig. 4 of the paper for the user's own network: one line per metric, over the FLOPs that remain.

    The x axis falls, so that the run goes from left to right, from the dense network to the pruned one. It begins
    with the last validation before the first event: how the dense network learned is another story. Validations
    after the last event stand above each other; the last one of the run has a larger mark.

    Metrics of which less is better, as their names tell (a loss, an error), are drawn only if there are no others;
    of more than six the first six. Metrics within [0, 1] share a panel, every other one has its own.

    Args:
        summary: its ``curve`` is drawn.

    Returns:
        None if no validation was noted, or none while anything was removed.
    """
    rows = _from_the_dense_network_on(summary)
    curves = _curves(rows, summary.flops.before or 1)
    if not curves or all(row["flops"] == rows[0]["flops"] for row in rows):
        return None
    panels = _panels(curves)
    title = f"{shorten(next(iter(curves)))} against FLOPs" if len(curves) == 1 else "Metrics against FLOPs"
    figure, all_axes = canvas(title, height=1.6 + 1.7 * len(panels), panels=[1.0] * len(panels))
    signs = dict(zip(curves, zip(COLOURS, MARKERS, strict=True), strict=False))
    for axes, names in zip(all_axes, panels, strict=True):
        for name in names:
            colour, marker = signs[name]
            (x, y) = zip(*curves[name], strict=True)
            label = f"{shorten(name)}: {y[0]:.4g} → {y[-1]:.4g}"
            axes.plot(x, y, color=colour, marker=marker, markersize=4, label=label)
            axes.plot(x[-1:], y[-1:], color=colour, marker=marker, markersize=9, markeredgecolor="white")
        plain_axes(axes, grid="both")
        _scale(axes, [value for name in names for _, value in curves[name]])
        axes.set_ylabel(shorten(names[0], 22) if len(names) == 1 else "metrics in [0, 1]")
    last = all_axes[-1]
    last.xaxis.set_major_formatter("{x:g} %")
    last.invert_xaxis()
    last.set_xlabel("FLOPs that remain (% of dense); time runs →")
    _mark_target(all_axes, summary.asked)
    legend_below(figure, ncols=1)
    return figure


def is_a_cost(metric: str) -> bool:
    """Whether less of a metric is better, as far as its name tells.

    Example:
        >>> is_a_cost("val/loss_epoch"), is_a_cost("valRMSE"), is_a_cost("val_acc"), is_a_cost("mAP")
        (True, True, False, False)
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", metric)
    return any(word.lower() in _COSTS for word in words)


def _from_the_dense_network_on(summary: PruningSummary) -> Sequence[Mapping[str, float]]:
    rows = [row for row in summary.curve if finite([row.get("flops")])]
    dense = [number for number, row in enumerate(rows) if row["flops"] >= summary.flops.before]
    return rows[dense[-1] :] if dense else rows


def _curves(rows: Sequence[Mapping[str, float]], dense: float) -> dict[str, _Curve]:
    """Metric -> its points; of metrics that were measured at least twice."""
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "flops"))
    points = {
        name: [(100 * row["flops"] / dense, row[name]) for row in rows if name in row and finite([row[name]])]
        for name in names
    }
    points = {name: found for name, found in points.items() if len(found) > 1}
    gains = [name for name in points if not is_a_cost(name)]
    return {name: points[name] for name in (gains or list(points))[:_MOST]}


def _panels(curves: Mapping[str, _Curve]) -> list[list[str]]:
    """Which metrics share an axis."""
    fractions = [name for name, points in curves.items() if all(0 <= value <= 1 for _, value in points)]
    return [panel for panel in (fractions, *([name] for name in curves if name not in fractions)) if panel]


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """The y axis covers the values; a change of less than two points of a fraction is not blown up to a fall."""
    low, high = min(values), max(values)
    fraction = low >= 0 and high <= 1
    spread = max(high - low, _LEAST if fraction else 0)
    if spread:
        top = (low + high) / 2 + 0.62 * spread
        if fraction:
            top = min(top, 1 + 0.12 * spread)  # there is nothing above, but a mark at 1 is to be whole
        axes.set_ylim(top - 1.24 * spread, top)


def _mark_target(all_axes: Sequence[Axes], asked: Mapping[str, float]) -> None:
    if "flops" not in asked:
        return
    for axes in all_axes:
        axes.axvline(100 * asked["flops"], color=GREY, linestyle=":", linewidth=1.5)
    all_axes[-1].plot([], [], color=GREY, linestyle=":", linewidth=1.5, label=f"asked: {100 * asked['flops']:.3g} %")
