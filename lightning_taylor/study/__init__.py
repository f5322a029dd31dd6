"""How good a criterion is, measured: the oracle, and how well the criteria rank the channels as it does."""

from lightning_taylor.study.correlation import SCOPES, Correlations, correlate, spearman
from lightning_taylor.study.criteria import every_criterion
from lightning_taylor.study.curvature import gather_curvature
from lightning_taylor.study.gathering import Gathered, gather_scores
from lightning_taylor.study.oracle import Oracle, measure_oracle, sample_channels
from lightning_taylor.study.tables import CorrelationTable

__all__ = [
    "SCOPES",
    "CorrelationTable",
    "Correlations",
    "Gathered",
    "Oracle",
    "correlate",
    "every_criterion",
    "gather_curvature",
    "gather_scores",
    "measure_oracle",
    "sample_channels",
    "spearman",
]
