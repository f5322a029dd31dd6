"""How much a channel matters: formulas, their accumulation, and the hooks that feed them."""

from lightning_taylor.scores.baselines import Random, WeightMagnitude
from lightning_taylor.scores.criterion import Criterion, Scorer
from lightning_taylor.scores.normalize import Normalization, normalize
from lightning_taylor.scores.taylor import Taylor
from lightning_taylor.scores.taylor_batch import TaylorBatch

__all__ = [
    "Criterion",
    "Normalization",
    "Random",
    "Scorer",
    "Taylor",
    "TaylorBatch",
    "WeightMagnitude",
    "normalize",
]
