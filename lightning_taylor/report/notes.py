"""What the report of a fit was told so far: it travels with a checkpoint, and the page is made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.record import Record
from lightning_taylor.plan.target import Target
from lightning_taylor.report.summary import PruningSummary

__all__ = ["ReportNotes"]


@final
@dataclass
class ReportNotes:
    """Metrics and scores of a fit.

    Attributes:
        before: metric -> its value in the last validation before the first event.
        after: metric -> its value in the last validation.
        curve: of each validation, "step", "flops" and the metrics.
        scores: "first" and "last" event -> group -> quantiles of its normalised scores just before.
        oracle: of each event that was checked, "step" and the scores' "correlation" with the oracle.
        called_with: shapes and types of what the model was called with, as ``call_template`` has them.
        baseline: metric -> its value of the dense model, where the user knows it.
        batch: how many examples the model is measured with; None if the release did not say.
    """

    before: dict[str, float]
    after: dict[str, float]
    curve: list[dict[str, float]]
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    oracle: list[dict[str, float]] = field(default_factory=list)
    called_with: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, float] = field(default_factory=dict)
    batch: int | None = None

    def summary(self, graph: ChannelGraph, target: Target | None, record: Record, **known: Any) -> PruningSummary:
        """Put the notes beside the graph and its events; the rest as for ``PruningSummary.of``."""
        return PruningSummary.of(
            graph,
            target,
            record=record,
            metrics_before={**self.before, **self.baseline},
            metrics_after=self.after,
            curve=self.curve,
            scores=self.scores,
            oracle=self.oracle,
            given=self.baseline,
            **known,
        )
