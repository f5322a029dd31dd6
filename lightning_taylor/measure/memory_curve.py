"""The bytes that are alive in a pass at widths that were never tried.

Shape legend: G = groups, T = moments of a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MemoryCurve",
]


@final
@dataclass(frozen=True, eq=False)
class MemoryCurve:
    r"""The bytes alive at each moment of a pass, as linear in the channels that each group loses.

    .. math::  b_t(n) = b_t - \sum_g n_g\, s_{gt}

    Maps are that: they are as large as their width, or as a sum of widths. Parameters are not: they are products of two
    widths. But what they take is known without a pass (``CostModel``), and the same at each moment.

    Attributes:
        now: shape ``(T,)``: bytes at the present widths.
        saved: shape ``(G, T)``: what one channel of each group saves, on average of half of the group; in
            the order of the graph.
        dense: bytes of the dense network at its peak.
        entry: bytes of a parameter's entry, on average.

    Example:
        >>> curve = MemoryCurve(np.array([8.0, 24.0]), np.array([[1.0, 5.0]]), dense=24, entry=4.0)
        >>> curve.peak(np.array([2]))
        14.0
    """

    now: NDArray[np.float64]
    saved: NDArray[np.float64]
    dense: int
    entry: float

    def peak(self, lost_G: NDArray[np.int64]) -> float:
        """Return the most bytes alive at a time where groups have lost so many channels.

        Args:
            lost_G: shape ``(G,)``, of the present widths.
        """
        return float((self.now - lost_G.astype(np.float64) @ self.saved).max())
