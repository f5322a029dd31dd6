"""When what was removed, and how long each event took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_taylor.report.figures.style import COLOURS, GREY, MARKERS, canvas, legend_below, plain_axes, styled
from lightning_taylor.report.summary import PruningSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["timeline_figure"]

_RESOURCES = {"flops": "FLOPs", "params": "parameters", "channels": "channels"}
_MANY = 40  # events, from which on their marks would run into one another


@styled
def timeline_figure(summary: PruningSummary) -> Figure | None:
    """What remains of FLOPs, parameters and channels over the steps; below it the seconds that each event took.

    Args:
        summary: its ``events`` are drawn, and the steps of its ``curve`` say how long the run went on.

    Returns:
        None without events.
    """
    if not summary.events:
        return None
    from matplotlib.ticker import MaxNLocator

    count = len(summary.events)
    title = f"What remains over the run: {count} event{'s' * (count > 1)}"
    figure, (upper, lower) = canvas(title, height=4.2, panels=(2.4, 1.0))
    _remaining(upper, summary)
    _seconds(lower, summary)
    lower.set_xlabel("optimizer steps (number)")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.set_xlim(left=0)
    legend_below(figure, ncols=2)
    return figure


def _remaining(axes: Axes, summary: PruningSummary) -> None:
    steps = [event["step"] for event in summary.events]
    end = max([*steps, *(row["step"] for row in summary.curve if "step" in row)])
    marks = "" if len(steps) > _MANY else None
    for (name, label), colour, marker in zip(_RESOURCES.items(), COLOURS, MARKERS, strict=False):
        dense = getattr(summary, name).before or 1
        left = [100.0, *(100 * event[name] / dense for event in summary.events)]
        text = f"{label}: {left[-1]:.3g} %"
        axes.plot(
            [0, *steps, end], [*left, left[-1]], color=colour, drawstyle="steps-post", label=text,
            marker=marker if marks is None else "", markersize=4, markevery=range(1, len(steps) + 1),
        )  # fmt: skip
        if name in summary.asked:
            axes.axhline(100 * summary.asked[name], color=colour, linestyle=":", linewidth=1.5)
    if any(name in summary.asked for name in _RESOURCES):
        axes.plot([], [], color=GREY, linestyle=":", linewidth=1.5, label="asked for")
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.set_ylim(0, 104)
    axes.set_ylabel("remains (% of dense)")
    plain_axes(axes, grid="y")


def _seconds(axes: Axes, summary: PruningSummary) -> None:
    """A needle per event."""
    steps = [event["step"] for event in summary.events]
    seconds = [event["seconds"] for event in summary.events]
    axes.vlines(steps, 0, seconds, color=GREY, linewidth=1.5)
    if len(steps) <= _MANY:
        axes.plot(steps, seconds, "o", color=GREY, markersize=3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("event (s)")
    plain_axes(axes, grid="y")
