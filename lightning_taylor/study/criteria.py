"""Every criterion there is, under the name it has in the tables."""

from __future__ import annotations

from lightning_taylor.criteria.activations import ActivationMean, ActivationStd, APoZ
from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.baselines import Random, WeightMagnitude
from lightning_taylor.criteria.combined import Combined
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch

__all__ = ["every_criterion"]


def every_criterion(*, probes: int = 10, seed: int = 0) -> dict[str, Criterion]:
    """The criteria of the paper, its follow-up, and the choices that they leave open.

    Args:
        probes: of OBD, for each batch.
        seed: of what is random.

    Example:
        >>> list(every_criterion())[:3]
        ['Taylor', 'Taylor, mean over positions', 'Taylor, absolute per batch']
    """
    return {
        "Taylor": Taylor(),
        "Taylor, mean over positions": Taylor(positions="mean"),
        "Taylor, absolute per batch": Taylor(absolute="batch"),
        "Taylor, absolute of the window": Taylor(absolute="window"),
        "TaylorBatch": TaylorBatch(),
        "OBD": OBD(probes=probes, seed=seed),
        "ActivationMean": ActivationMean(),
        "ActivationStd": ActivationStd(),
        "APoZ": APoZ(),
        "MutualInformation": MutualInformation(),
        "WeightMagnitude": WeightMagnitude(),
        "Random": Random(seed=seed),
        "Taylor + 0.1 ActivationMean": Combined(Taylor(), ActivationMean(), share=0.1),
    }
