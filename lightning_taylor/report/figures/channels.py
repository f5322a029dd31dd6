"""How many channels each layer had, and how many it kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_taylor.report.figures.style import (
    BLUE,
    GREY,
    INK,
    LIGHT,
    canvas,
    label_rows,
    legend_below,
    plain_axes,
    row_height,
    styled,
)
from lightning_taylor.report.summary import LayerChange, PruningSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["channels_figure"]


@styled
def channels_figure(summary: PruningSummary) -> Figure | None:
    """A bar per layer in forward order, what it kept in front of what it had; None without layers.

    The figure grows with the layers; in a long list only some of them are named.

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
