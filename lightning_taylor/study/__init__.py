"""How good a criterion is: does it rank the channels as the oracle does, and what does a pruning by it cost."""

from lightning_taylor.study.correlation import SCOPES, Correlations, correlate, spearman
from lightning_taylor.study.criteria import every_criterion
from lightning_taylor.study.curvature import gather_curvature
from lightning_taylor.study.curves import DENSE, Curve, CurveFile, CurvePoint, CurveTable, measured_steps
from lightning_taylor.study.gathering import Gathered, gather_scores
from lightning_taylor.study.oracle import Oracle, measure_oracle, sample_channels
from lightning_taylor.study.tables import CorrelationTable

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
    "gather_curvature",
    "gather_scores",
    "measure_oracle",
    "measured_steps",
    "sample_channels",
    "spearman",
]
