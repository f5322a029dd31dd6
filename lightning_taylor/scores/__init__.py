"""How much a channel matters: formulas, their accumulation, and the hooks that feed them."""

from lightning_taylor.scores.activations import ActivationMean, ActivationStd, APoZ
from lightning_taylor.scores.baselines import Random, WeightMagnitude
from lightning_taylor.scores.combined import Combined
from lightning_taylor.scores.criterion import Criterion, Scorer
from lightning_taylor.scores.formulas import Absolute, Positions
from lightning_taylor.scores.mutual_information import MutualInformation
from lightning_taylor.scores.normalize import Normalization, normalize
from lightning_taylor.scores.obd import OBD
from lightning_taylor.scores.taylor import Taylor
from lightning_taylor.scores.taylor_batch import TaylorBatch

__all__ = [
    "OBD",
    "APoZ",
    "Absolute",
    "ActivationMean",
    "ActivationStd",
    "Combined",
    "Criterion",
    "MutualInformation",
    "Normalization",
    "Positions",
    "Random",
    "Scorer",
    "Taylor",
    "TaylorBatch",
    "WeightMagnitude",
    "normalize",
]
