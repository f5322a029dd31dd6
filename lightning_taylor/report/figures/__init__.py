"""A pruning in pictures, from its summary alone: no model, no Trainer, no pyplot.

Each picture is a ``matplotlib.figure.Figure`` of its own, so it can be shown, logged, saved or closed by whoever
asked for it, and nothing is left behind in matplotlib's global state.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_taylor.report.figures.accuracy import accuracy_figure
from lightning_taylor.report.figures.per_layer import channels_figure, scores_figure
from lightning_taylor.report.figures.style import png
from lightning_taylor.report.figures.timeline import timeline_figure
from lightning_taylor.report.summary import PruningSummary
from lightning_taylor.utilities.atomic import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_figure", "channels_figure", "figures", "save_figures", "scores_figure", "timeline_figure"]


def figures(summary: PruningSummary) -> dict[str, Figure]:
    """All pictures that the summary has data for.

    Args:
        summary: of a fit, or made by hand.

    Returns:
        ``channels`` (per layer, before and after), ``accuracy`` (validation metrics against the FLOPs that remain),
        ``timeline`` (what remains over the steps, and how long each event took) and ``scores`` (their spread in
        each group before the first and the last event), without those that would be empty.

    Raises:
        ModuleNotFoundError: without matplotlib; the message says what to install.

    Example:
        >>> from lightning_taylor.report import Change, LayerChange, PruningSummary
        >>> half = Change(64, 32)
        >>> summary = PruningSummary({"flops": 0.5}, half, half, half, layers=(LayerChange("conv1", 64, 32),))
        >>> list(figures(summary))
        ['channels']
    """
    makers = {
        "channels": channels_figure,
        "accuracy": accuracy_figure,
        "timeline": timeline_figure,
        "scores": scores_figure,
    }
    drawn = {name: make(summary) for name, make in makers.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_figures(summary: PruningSummary, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every picture to ``pruning_<name>.png``, about 1,000 pixels wide.

    Args:
        summary: what to draw.
        folder: made if it is missing; existing pictures are replaced.

    Returns:
        The paths, in the order of ``figures``.

    Raises:
        ModuleNotFoundError: without matplotlib; the message says what to install.
    """
    pictures = {name: png(figure) for name, figure in figures(summary).items()}
    return [write_file(Path(folder) / f"pruning_{name}.png", data) for name, data in pictures.items()]
