"""Criteria: how much a channel matters, each as a class that a Trainer's callback or YAML can name."""

from lightning_taylor.criteria.activations import ActivationMean, ActivationStd, APoZ
from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.baselines import Random, WeightMagnitude
from lightning_taylor.criteria.check import CriterionError, check_criterion
from lightning_taylor.criteria.combined import Combined
from lightning_taylor.criteria.hooked import HookedScorer
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.scores.formulas import Absolute, Positions
from lightning_taylor.scores.normalize import Normalization, normalize

__all__ = [
    "OBD",
    "APoZ",
    "Absolute",
    "ActivationMean",
    "ActivationStd",
    "Combined",
    "Criterion",
    "CriterionError",
    "HookedScorer",
    "MutualInformation",
    "Normalization",
    "Positions",
    "Random",
    "Scorer",
    "Taylor",
    "TaylorBatch",
    "WeightMagnitude",
    "check_criterion",
    "normalize",
]
