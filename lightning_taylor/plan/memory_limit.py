"""Whether a removal brings the peak memory within a limit, without a pass for each that is tried.

Shape legend: G = groups.
"""

from __future__ import annotations

from typing import final

import numpy as np

from lightning_taylor.measure.memory_curve import MemoryCurve
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.ranking import Counts

__all__ = [
    "MemoryLimit",
]


@final
class MemoryLimit:
    r"""The share of the dense network's peak memory that may remain.

    .. math::  B(n) = \max_t \Bigl( b_t - \sum_g n_g s_{gt} \Bigr)
               + \beta \Bigl( \sum_g n_g p_g - (P - P(n)) \Bigr)

    with the bytes ``b`` and what a channel saves of them, ``s``, of the ``curve``. Beside it stands what a line through
    half of a group gets wrong of the parameters, of ``beta`` bytes each: by it ``n p`` go, and in truth ``P - P(n)``.

    Args:
        curve: at the present widths.
        cost: at the present widths, of the same groups.
        share: that may remain.
    """

    def __init__(self, curve: MemoryCurve, cost: CostModel, share: float) -> None:
        self._curve, self._cost, self.share = curve, cost, share
        half_G = np.maximum(1, cost.sizes // 2)
        left_GG = [cost.at_counts(half_G * (np.arange(len(half_G)) == g)).params for g in range(len(half_G))]
        self._params_G = (cost.now.params - np.array(left_GG, dtype=np.float64).reshape(-1)) / half_G

    def over(self, removed_G: Counts) -> float:
        """Return how far a removal stays above the limit, as a share of the dense peak; below 0 where it is met."""
        line = float(removed_G @ self._params_G)
        bent = line - (self._cost.now.params - self._cost.at_counts(removed_G).params)
        return (self._curve.peak(removed_G) + self._curve.entry * bent) / self._curve.dense - self.share
