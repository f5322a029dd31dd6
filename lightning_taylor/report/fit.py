"""What a fit has to say for itself: metrics before and after, a measured latency, a table and ``pruning.json``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_taylor.graph.copying import private_copy
from lightning_taylor.graph.trace import ForwardCall
from lightning_taylor.plan.latency import LatencyComparison, compare_latency
from lightning_taylor.plan.twin import one_example, repeated, runner, with_shapes
from lightning_taylor.pruner import Pruner
from lightning_taylor.report.summary import PruningSummary
from lightning_taylor.report.table import summary_tables

__all__ = ["FitReport"]

_LARGEST_BATCH = 16


class FitReport:
    """Collects during a fit, and shows at its end."""

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.curve: list[dict[str, float]] = []
        self._calls: list[ForwardCall] = []
        self._batch = 1

    def begin(self, calls: Sequence[ForwardCall]) -> None:
        """Keep one example of what the model is called with, for the latency at the end."""
        self._calls, batch = one_example(calls)
        self._batch = min(batch, _LARGEST_BATCH)

    def note(self, metrics: Mapping[str, float], step: int, pruner: Pruner) -> None:
        """Take down a validation's metrics; those of the last one before the first event are the dense ones."""
        values = {
            name: value
            for name, value in metrics.items()
            if not name.startswith(("pruning/", "train")) and not name.endswith("_step") and name != "flops"
        }
        self.after = values
        if not pruner.record.events:
            self.before = values
        self.curve.append({"step": step, "flops": pruner.cost.flops, **values})

    def to_plain(self) -> dict[str, Any]:
        """What was noted, in plain types."""
        return {"before": dict(self.before), "after": dict(self.after), "curve": [dict(row) for row in self.curve]}

    def load(self, plain: Mapping[str, Any]) -> None:
        """Go on from ``to_plain``."""
        self.before, self.after = dict(plain["before"]), dict(plain["after"])
        self.curve = [dict(row) for row in plain["curve"]]

    def show(self, pruner: Pruner, folder: str | Path, *, measure_latency: bool, compiled: int = 0) -> PruningSummary:
        """Print the table and write ``pruning.json`` into a folder.

        A network that took hours is there by now: what cannot be measured, printed or written is a warning.
        """
        summary = PruningSummary.of(
            pruner.graph,
            pruner.options.target,
            record=pruner.record,
            unscored={**pruner.blind, **pruner.unscored},
            metrics_before=self.before,
            metrics_after=self.after,
            latency=self._latency(pruner) if measure_latency and pruner.record.events else None,
            compiled_graphs=compiled,
        )
        path = Path(folder) / "pruning.json"
        console = Console(file=sys.stdout, soft_wrap=False)
        with _no_loss("the pruning report could not be printed"):
            console.print(summary_tables(summary))
        with _no_loss(f"the pruning report could not be written to {path}"):
            summary.write_json(path)
            console.print(f"The same as data: {path}", highlight=False, soft_wrap=True)
        return summary

    def _latency(self, pruner: Pruner) -> LatencyComparison | None:
        """The evaluation path of the pruned net and of one with the dense widths, run in turn."""
        if not self._calls:
            return None
        with _no_loss("the latency of the pruned network could not be measured"):
            pruned = private_copy(pruner.model).eval()
            dense = with_shapes(pruned, pruner.graph.dense)
            calls = [repeated(call, self._batch, next(pruned.parameters())) for call in self._calls]
            return compare_latency(runner(dense, calls), runner(pruned, calls), warmup=2, repeats=10)
        return None


@contextmanager
def _no_loss(what: str) -> Iterator[None]:
    """Any error is a warning that says what is missing."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: {type(error).__name__}: {error}", stacklevel=2)
