"""How good a criterion is: does it rank the channels as the oracle does, and what does a pruning by it cost."""

from lightning_taylor.study.correlation import SCOPES, Correlations, correlate, spearman
from lightning_taylor.study.correlation_table import CorrelationTable
from lightning_taylor.study.curve_table import CurveTable, measured_steps
from lightning_taylor.study.curves import DENSE, Curve, CurveFile, CurvePoint
from lightning_taylor.study.oracle import Oracle, measure_oracle, sample_channels
from lightning_taylor.study.score_batches import Gathered, every_criterion, gather_scores

__all__ = [
    "DENSE",
    "SCOPES",
    "CorrelationTable",
    "Correlations",
    "Curve",
    "CurveFile",
    "CurvePoint",
    "CurveTable",
    "Gathered",
    "Oracle",
    "correlate",
    "every_criterion",
    "gather_scores",
    "measure_oracle",
    "measured_steps",
    "sample_channels",
    "spearman",
]
