"""The paper's Tables 1 and 3 for one's own network: several seeds as one table, as data, and as a figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lightning_taylor.study.correlation import SCOPES, Correlations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Cell",
    "CorrelationTable",
]

_HEADINGS = {"per layer": "per layer", "none": "all, raw", "l1": "all, l1", "l2": "all, l2", "minmax": "all, min-max"}


@dataclass(frozen=True)
class Cell:
    """A correlation: the mean over seeds, and the interval that holds 95 % of the resampled means."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Such as ``0.73 ±0.04``: with half the width of the interval."""
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ±{(self.high - self.low) / 2:.2f}"


class CorrelationTable:
    """Correlations of criteria with an oracle, over one or several seeds.

    The intervals come from two levels of chance at once: seeds are drawn with replacement, and for each of them one
    of the resamples of its batches. They say how far another training and other data would move the number, and
    nothing about other networks. With one seed they hold the chance of the batches only.

    Args:
        runs: one for each seed; the criteria are those of the first.
        draws: how often the mean is drawn anew for an interval.

    Raises:
        ValueError: without a run.

    Example:
        >>> run = Correlations(scopes={"Taylor": dict.fromkeys(SCOPES, 0.5)}, layers={"Taylor": {"conv1": 0.5}})
        >>> str(CorrelationTable([run]).cell("Taylor", "l2"))
        '0.50'
    """

    def __init__(self, runs: Iterable[Correlations], *, draws: int = 2000) -> None:
        self.runs: Sequence[Correlations] = list(runs)
        if not self.runs:
            raise ValueError("a table of correlations needs at least one run")
        self._draws = draws

    @property
    def criteria(self) -> list[str]:
        """Their names, the best after l2 first."""
        return sorted(self.runs[0].scopes, key=lambda name: -self._mean(name, "l2"))

    def _mean(self, criterion: str, scope: str) -> float:
        return mean(run.scopes[criterion][scope] for run in self.runs)

    def cell(self, criterion: str, scope: str) -> Cell:
        """One entry of the table.

        Args:
            criterion: its name.
            scope: one of ``SCOPES``.
        """
        value = self._mean(criterion, scope)
        samples = [run.resampled.get(criterion, {}).get(scope, []) for run in self.runs]
        if not all(samples):
            return Cell(value)
        generator = torch.Generator().manual_seed(0)
        seeds, width = len(samples), min(map(len, samples))
        # Centred on what was measured: a resample knows fewer different batches, and correlates a little less.
        offsets = torch.tensor([s[:width] for s in samples], dtype=torch.float64)
        offsets = offsets - offsets.mean(1, keepdim=True)
        centres = torch.tensor([run.scopes[criterion][scope] for run in self.runs], dtype=torch.float64)
        which = torch.randint(seeds, (self._draws, seeds), generator=generator)
        sample = torch.randint(width, (self._draws, seeds), generator=generator)
        means = (centres[which] + offsets[which, sample]).mean(1)
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Cell(value, low, high)

    def layers(self, criterion: str) -> dict[str, float]:
        """Group -> correlation within it, the mean over seeds (the paper's Table 3)."""
        groups = self.runs[0].layers[criterion]
        return {g: mean(run.layers[criterion][g] for run in self.runs if g in run.layers[criterion]) for g in groups}

    def to_plain(self) -> dict[str, Any]:
        """Everything as nested dicts and lists, for JSON."""
        cells = {c: {scope: vars(self.cell(c, scope)) for scope in SCOPES} for c in self.criteria}
        return {
            "seeds": len(self.runs),
            "groups": self.runs[0].groups,
            "channels": self.runs[0].channels,
            "cells": cells,
            "layers": {c: self.layers(c) for c in self.criteria},
        }

    def write(self, path: str | Path) -> Path:
        """Write ``to_plain`` into a JSON file."""
        path = Path(path)
        path.write_text(json.dumps(self.to_plain(), indent=1) + "\n")
        return path

    def show(self, console: Console | None = None, *, layers: bool = False) -> None:
        """Print the table, and with ``layers`` the one by layers too."""
        console = console or Console()
        table = Table(title=self._title(), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("criterion", min_width=max(len(word) for name in self.criteria for word in name.split()))
        for scope in SCOPES:
            table.add_column(_HEADINGS[scope], justify="right")
        for criterion in self.criteria:
            table.add_row(criterion, *(str(self.cell(criterion, scope)) for scope in SCOPES))
        console.print(table)
        if layers:
            console.print(self._by_layer())

    def _title(self) -> str:
        run, seeds = self.runs[0], len(self.runs)
        return (
            f"Spearman's correlation with the oracle: {run.channels} channels of {run.groups} groups, "
            f"{seeds} seed{'s' if seeds > 1 else ''}"
        )

    def _by_layer(self) -> Table:
        """A row for each group; the criteria have numbers, or nothing else would fit."""
        columns = {criterion: self.layers(criterion) for criterion in self.criteria}
        table = Table(title="within each group, in hundredths", box=None, padding=(0, 1, 0, 0))
        table.add_column("group", overflow="fold")
        for place in range(len(columns)):
            table.add_column(str(place + 1), justify="right", no_wrap=True)
        for group in columns[self.criteria[0]]:
            table.add_row(group, *(f"{100 * columns[c][group]:.0f}" for c in self.criteria))
        table.caption = ", ".join(f"{place + 1} {criterion}" for place, criterion in enumerate(columns))
        return table

    def figure(self) -> Figure:
        """A dot with its interval for each criterion and scope.

        Raises:
            ImportError: without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("figures need matplotlib: pip install 'lightning-taylor[plots]'") from error
        names = self.criteria[::-1]
        figure = Figure(figsize=(7, 0.45 * len(names) + 1.6), layout="constrained")
        axes = figure.subplots()
        for place, scope in enumerate(("per layer", "none", "l2")):
            cells = [self.cell(name, scope) for name in names]
            height = [y + 0.22 * (1 - place) for y in range(len(names))]
            axes.errorbar(
                [c.value for c in cells], height, xerr=_whiskers(cells), fmt="os^"[place], ms=4, label=_HEADINGS[scope]
            )
        axes.set_yticks(range(len(names)), names)
        axes.axvline(0, color="0.8", zorder=0)
        axes.set_xlabel("Spearman's correlation with the oracle")
        axes.legend(loc="best", fontsize="small")
        return figure


def _whiskers(cells: Sequence[Cell]) -> list[list[float]] | None:
    if any(c.low is None for c in cells):
        return None
    below = [max(0.0, c.value - (c.low or 0.0)) for c in cells]
    above = [max(0.0, (c.high or 0.0) - c.value) for c in cells]
    return [below, above]
