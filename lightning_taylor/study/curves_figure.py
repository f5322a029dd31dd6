"""The picture of a table of curves: a metric over the channels and over the FLOPs that remain, with its spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from lightning_taylor.report.figures.style import COLOURS, GREY, MARKERS, legend_below, plain_axes, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_taylor.study.curves import Curve

__all__ = ["curves_figure"]

_LEAST = 0.02  # of a metric in [0, 1]: a smaller range is not blown up to the height of the figure
_RESOURCES = {"channels": "channels", "flops": "FLOPs"}


@styled
def curves_figure(lines: Mapping[str, Sequence[Curve]], metric: str, dense: Sequence[Curve] = ()) -> Figure:
    """Two panels, over channels and over FLOPs: the mean of the seeds, and a band from the least to the most.

    A point is the mean of what the seeds measured at the same step. The last one, after the fine-tuning at the end of
    the fit, has a larger mark.

    Args:
        lines: criterion -> its curves, one for each seed.
        metric: what was measured.
        dense: of the dense network after equal steps; the mean of their ends is a line across.

    Raises:
        ModuleNotFoundError: without matplotlib; the message says what to install.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    everything = [*dense, *(curve for curves in lines.values() for curve in curves)]
    values = [point.metric for curve in everything for point in curve.points]
    seeds = len({curve.seed for curve in everything})
    rows = (len(lines) + bool(dense) + 1) // 2
    figure = Figure(figsize=(5.4, 3.3 + 0.22 * rows), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    spread = f": mean and range of {seeds} seeds" if seeds > 1 else ""
    title = f"{shorten(metric)} while pruned{spread}"
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    for axes, (resource, label) in zip(panels, _RESOURCES.items(), strict=True):
        for place, (name, curves) in enumerate(lines.items()):
            _draw(axes, name, curves, resource, place)
        if dense:
            end = mean(curve.last.metric for curve in dense)
            axes.axhline(end, color=GREY, linestyle="--", linewidth=1.5, zorder=1, label="dense, equal steps")
        plain_axes(axes, grid="both")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.invert_xaxis()
        axes.set_xlabel(f"{label} that remain\n(% of dense)")
    unit = "fraction" if min(values) >= 0 and max(values) <= 1 else "in its own unit"
    panels[0].set_ylabel(f"{shorten(metric)} ({unit})")
    _scale(panels[0], values)
    legend_below(figure, panels[0].get_legend_handles_labels()[0])
    return figure


def _draw(axes: Axes, name: str, curves: Sequence[Curve], resource: str, place: int) -> None:
    """A criterion's line and band; the points of its seeds belong together by their places."""
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    style = ("-", ":", "-.")[place // len(COLOURS) % 3]
    together = list(zip(*(curve.points for curve in curves), strict=False))
    x = [100 * mean(getattr(point, resource) for point in points) for points in together]
    y = [mean(point.metric for point in points) for points in together]
    low, high = ([pick(point.metric for point in points) for points in together] for pick in (min, max))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    # The first on top and the thinnest, so that criteria that do the same are all seen.
    order, width = 3 - place / 100, min(3.0, 1.6 + 0.4 * place)
    look: dict[str, Any] = {"color": colour, "marker": marker, "zorder": order}
    axes.plot(x, y, linestyle=style, linewidth=width, markersize=3 + width / 2, label=shorten(name), **look)
    axes.plot(x[-1:], y[-1:], markersize=6 + width, markeredgecolor="white", **look)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if low >= 0 and high <= 1 and high - low < _LEAST:
        axes.set_ylim((low + high - 1.2 * _LEAST) / 2, (low + high + 1.2 * _LEAST) / 2)
