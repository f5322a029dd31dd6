"""The paper's Figs. 4 to 6 for one's own network: a metric against what remains, for a list of criteria and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from lightning_taylor.study.curves import DENSE, Curve
from lightning_taylor.study.curves_figure import curves_figure
from lightning_taylor.utilities.plain import to_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CurveTable",
    "Spread",
    "measured_steps",
]

_SHARES = (0.75, 0.5, 0.3)  # of the FLOPs, in the table


def measured_steps(events: Sequence[int], total: int, points: int) -> list[int]:
    """The optimizer steps after which a curve is measured: equal shares of the events, and the end of the fit.

    As in the paper, an event is followed by its fine-tuning and then measured, just before the next one. The last
    event is given as many steps as the first one.

    Args:
        events: the steps of all events, in order.
        total: optimizer steps of the fit.
        points: how many events are measured, evenly spread; all of them if they are fewer.

    Example:
        >>> measured_steps([10, 20, 30, 40], total=100, points=2)
        [29, 49, 100]
    """
    if not events:
        return [total]
    pause = events[1] - events[0] if len(events) > 1 else 1
    ends = [*(event - 1 for event in events[1:]), min(total, events[-1] + pause - 1)]
    chosen = {max(0, round(share * len(events) / points) - 1) for share in range(1, points + 1)}
    return sorted({ends[place] for place in chosen} | {total})


@dataclass(frozen=True)
class Spread:
    """A number of several seeds: the mean, and the standard deviation if there are at least two."""

    mean: float
    sd: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value for each seed."""
        return cls(mean(values), stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """Such as ``0.931 ±0.004``."""
        return f"{self.mean:.3f}" if self.sd is None else f"{self.mean:.3f} ±{self.sd:.3f}"


class CurveTable:
    """Curves of several criteria and seeds: as a table, as data, and as a figure.

    Args:
        curves: with equal schedules; each criterion with the same seeds.
        metric: the name of what was measured.

    Raises:
        ValueError: without a curve.

    Example:
        >>> from lightning_taylor.study.curves import CurvePoint
        >>> ends = CurvePoint(0, 1.0, 1.0, 1.0, metric=0.9), CurvePoint(50, 0.6, 0.4, 0.5, metric=0.8)
        >>> str(CurveTable([Curve("Taylor", 0, ends), Curve("Taylor", 1, ends)], "val_acc").cell("Taylor", 0.4))
        '0.800 ±0.000'
    """

    def __init__(self, curves: Iterable[Curve], metric: str) -> None:
        self.metric = metric
        self._of: dict[str, list[Curve]] = {}
        for curve in curves:
            self._of.setdefault(curve.criterion, []).append(curve)
        if not self._of:
            raise ValueError("a table of curves needs at least one curve")

    @property
    def criteria(self) -> list[str]:
        """Their names, the dense twin first if there is one."""
        return sorted(self._of, key=lambda name: name != DENSE)

    @property
    def seeds(self) -> int:
        """How many."""
        return len({curve.seed for curves in self._of.values() for curve in curves})

    def cell(self, criterion: str, flops: float) -> Spread | None:
        """The metric at a fraction of the FLOPs, interpolated; None where a seed never got there."""
        values = [value for curve in self._of[criterion] if (value := curve.at(flops)) is not None]
        return Spread.of(values) if len(values) == len(self._of[criterion]) else None

    def end(self, criterion: str) -> Spread:
        """The metric at the end of the fit."""
        return Spread.of([curve.last.metric for curve in self._of[criterion]])

    def to_plain(self) -> dict[str, Any]:
        """Everything as nested dicts and lists, for JSON."""

        def row(name: str) -> dict[str, Any]:
            cells = {str(share): self.cell(name, share) for share in _SHARES}
            at = {share: vars(cell) if cell else None for share, cell in cells.items()}
            flops = mean(curve.last.flops for curve in self._of[name])
            return {"at_flops": at, "end": vars(self.end(name)), "flops_at_end": flops}

        return {
            "metric": self.metric,
            "seeds": self.seeds,
            "criteria": {name: row(name) for name in self.criteria},
            "curves": [to_plain(curve) for name in self.criteria for curve in self._of[name]],
        }

    def show(self, console: Console | None = None) -> None:
        """Print the table."""
        spread = f"mean ± sd of {self.seeds} seeds" if self.seeds > 1 else "1 seed"
        title = f"{self.metric} by the FLOPs that remain, {spread}"
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("criterion", min_width=max(len(word) for name in self.criteria for word in name.split()))
        for heading in (*(f"{100 * share:g} %" for share in _SHARES), "end", "FLOPs"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, row in self.to_plain()["criteria"].items():
            cells = [str(self.cell(name, share) or "-") for share in _SHARES]
            table.add_row(name, *cells, str(self.end(name)), f"{100 * row['flops_at_end']:.0f} %")
        table.caption = (
            "between measured points interpolated; -: never that small\nend: after the last step, with the FLOPs then"
        )
        (console or Console()).print(table)

    def figure(self) -> Figure:
        """Over the channels and over the FLOPs that remain: see ``curves_figure``.

        Raises:
            ModuleNotFoundError: without matplotlib; the message says what to install.
        """
        lines = {name: curves for name, curves in self._of.items() if name != DENSE}
        return curves_figure(lines, self.metric, self._of.get(DENSE, ()))
