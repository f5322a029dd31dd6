"""How every picture looks: colours, letters and sizes that can still be read 320 pixels wide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from io import BytesIO
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLOURS",
    "GREY",
    "INK",
    "LIGHT",
    "MARKERS",
    "VERMILLION",
    "canvas",
    "finite",
    "label_rows",
    "legend_below",
    "plain_axes",
    "png",
    "row_height",
    "shorten",
    "styled",
]

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's colours, which people with any colour vision tell apart; their yellow is too faint for a line.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vP"  # a second sign beside the colour, for prints without any
INK, GREY, LIGHT = "#222222", "#6B7280", "#C9CED6"

_WIDTH = 4.8  # inches; small, so that the letters are large beside it
_FONT = "DejaVu Sans"  # comes with matplotlib, so that pictures look alike on every machine
_LONGEST = 26  # characters of a layer's name
_LINE = 0.19  # inches that a line of text needs
_RC: dict[str, Any] = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": _FONT,
    "font.size": 10.5,
    "text.parse_math": False,  # a dollar sign in a layer's name is no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.labelpad": 6,
    "grid.color": "#E3E6EA",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.constrained_layout.w_pad": 0.08,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw under these settings whatever the user's ``matplotlibrc`` says, and put theirs back."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import matplotlib
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the pictures are drawn by matplotlib, which is not installed: pip install 'lightning-taylor[plots]'"
            ) from error
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)  # pyright: ignore[reportCallIssue, reportArgumentType]
            return draw(*args, **kwargs)

    return drawn


def canvas(title: str, height: float, panels: Sequence[float] = (1.0,)) -> tuple[Figure, list[Axes]]:
    """A figure with panels above each other that share their x axis.

    Args:
        title: says what is shown.
        height: in inches; the width is the same everywhere.
        panels: their heights, relative to each other.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=panels)[:, 0]
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    return figure, list(axes)


def plain_axes(axes: Axes, grid: str) -> None:
    """Lines to read values by along one axis, no ticks, and letters that stay large."""
    axes.grid(axis=grid)  # pyright: ignore[reportArgumentType]
    # Ticks are made when the figure is drawn, under whatever settings are in force by then.
    axes.tick_params(length=0, labelsize=10, labelcolor=INK, labelfontfamily=_FONT)


def legend_below(figure: Figure, handles: Iterable[Any] | None = None, ncols: int = 2) -> None:
    """What the colours mean, below everything else."""
    options = {} if handles is None else {"handles": list(handles)}
    figure.legend(loc="outside lower left", ncols=ncols, handlelength=1.6, columnspacing=1.4, **options)


def row_height(rows: int, least: float) -> float:
    """Inches per row: as much as a line of text needs for up to 60 rows (ResNet-50 has 54), less in a longer list.

    Args:
        rows: how many there are.
        least: inches that a row needs without a text.
    """
    rows = max(rows, 1)
    return max(least, min(0.24, max(7.0 / rows, min(_LINE, 11.5 / rows))))


def label_rows(axes: Axes, names: Sequence[str], height: float) -> list[int]:
    """Name the rows 0, 1, ... from the top down: all of them, or as many as have the space.

    Args:
        axes: horizontal bars or boxes, one per row.
        names: one per row.
        height: inches per row.

    Returns:
        The rows that have a name.
    """
    every = math.ceil(_LINE / height)
    shown = list(range(0, len(names), every))
    axes.set_yticks(shown, [shorten(names[row]) for row in shown])
    axes.set_ylim(len(names) - 0.4, -0.6)
    if len(names) * height > 6:
        axes.tick_params(top=False, labeltop=True)
    return shown


def shorten(name: str, longest: int = _LONGEST) -> str:
    """A name that fits beside a picture: long ones lose their middle, letters that the font lacks become a box.

    Example:
        >>> shorten("backbone.features.denseblock3.denselayer24.conv2")
        'back…k3.denselayer24.conv2'
    """
    text = "".join(letter if letter in " …" or ord(letter) in _letters() else "\ufffd" for letter in name)
    if len(text) <= longest:
        return text
    start = longest // 6
    return f"{text[:start]}…{text[start + 1 - longest :]}"


@cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(_FONT)).get_charmap())


def finite(values: Iterable[Any]) -> bool:
    """Whether all of them are numbers to be drawn."""
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


@styled
def png(figure: Figure, dpi: int = 200) -> bytes:
    """The picture as a PNG file's content, the same bytes for the same picture.

    Args:
        figure: one of ours.
        dpi: pixels per inch; the figures are 4.8 inches wide.
    """
    file = BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()
