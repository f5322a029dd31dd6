"""How many steps a fit has whose optimizers step when their own code says so, as in manual optimization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_taylor.plan.fit_length import FitLength

__all__ = ["Pace", "Standing"]


@final
@dataclass(frozen=True)
class Standing:
    """How far a fit has come, and how far it goes, in what its Trainer counts.

    Attributes:
        batches: that ended.
        counted: steps of optimizers: two for a batch where two of them step, none where the Trainer sees none.
        most_batches: of the whole fit; infinite if nobody knows.
        most_counted: after which the fit ends; infinite if it does not.
        epoch: batches of an epoch; infinite if nobody knows.
    """

    batches: int
    counted: int
    most_batches: float = math.inf
    most_counted: float = math.inf
    epoch: float = math.inf


@final
@dataclass(frozen=True)
class Pace:
    r"""What comes to pass from one batch with an optimizer step to the next.

    .. math::  N = n + \min\Big(\frac{B - b}{p_b}, \frac{C - c}{p_c}\Big), \qquad
               p_b = \frac{b - b_0}{n - n_0}, \quad p_c = \frac{c - c_0}{n - n_0}

    with the steps ``n``, batches ``b`` and counted steps ``c`` until now, those of the first step ``n_0, b_0, c_0``,
    and the ends ``B`` and ``C``, as they were at the first step.

    Attributes:
        step: the number of the first step that was seen.
        first: where the fit stood then.
    """

    step: int
    first: Standing

    def length(self, step: int, now: Standing) -> FitLength | None:
        """Return how long the fit is if it goes on as it did; None before a second step.

        Args:
            step: the number of the latest.
            now: where the fit stands after it; only what has passed counts.

        Example:
            >>> first = Standing(batches=4, counted=1, most_batches=400, epoch=100)
            >>> Pace(1, first).length(3, Standing(batches=12, counted=3))
            FitLength(steps=100, epoch=25)
        """
        if step == self.step or now.batches <= self.first.batches:  # an old checkpoint may not count its batches
            return None
        first, steps = self.first, step - self.step
        batches, counted = (now.batches - first.batches) / steps, (now.counted - first.counted) / steps
        left = min(
            (first.most_batches - now.batches) / batches,
            (first.most_counted - now.counted) / counted if counted else math.inf,
        )
        epoch = max(1.0, first.epoch / batches)
        return FitLength(*(x if x == math.inf else math.floor(x) for x in (step + max(0.0, left), epoch)))
