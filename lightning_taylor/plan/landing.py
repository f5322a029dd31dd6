"""The last event's landing: where the ranking overshoots a target, the combination that does not.

In a small net one channel of a residual stage can be worth several per cent, and a prefix of the ranking then ends that
far below the target. Other combinations of widths lie closer. They are tried all, or where those are too many, all that
differ from the prefix in two groups.

Shape legend: G = groups, N = combinations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_taylor.plan.ranking import Counts, Ranking

__all__ = ["Judge", "landed"]

_MOST = 100_000  # combinations that are tried
_CHUNK = 10_000  # of them at once


class Judge(Protocol):
    """Whatever can tell how far combinations go below the target of a fit."""

    def undercuts(self, removed_NG: Counts) -> NDArray[np.float64]:
        """Shape ``(N,)``: in dense models; infinite where the demand is not met."""
        ...


def landed(ranking: Ranking, judge: Judge, removed_G: Counts, near: float) -> Counts:
    """Return a combination that ends no more than ``near`` below the target, if there is one.

    Of several the one whose most important block is the least important is taken, then the one that ends closest. If
    none ends so near, the ranking's own prefix stays: what matters most should not go for a few thousandths.

    Args:
        ranking: what may go.
        judge: knows target and cost.
        removed_G: channels per group that the prefix of the ranking removes.
        near: in dense models.
    """
    ladders = _Ladders(ranking)
    best_G, best = removed_G, (math.inf, math.inf)
    for index_NG in ladders.chunks(removed_G):
        counts_NG, ranks_N = ladders.counts(index_NG), ladders.highest_ranks(index_NG)
        undercuts_N = judge.undercuts(counts_NG)
        near_N = np.flatnonzero(undercuts_N <= near)
        if not near_N.size:
            continue
        n = near_N[np.lexsort((undercuts_N[near_N], ranks_N[near_N]))[0]]
        found = (float(ranks_N[n]), float(undercuts_N[n]))
        if found < best:
            best_G, best = counts_NG[n], found
    return best_G


class _Ladders:
    """The counts that each group can lose, in steps of its blocks."""

    def __init__(self, ranking: Ranking) -> None:
        self._groups = len(ranking.orders)
        self._counts: list[Counts] = []
        self._ranks: list[Counts] = []
        for g in range(self._groups):
            blocks = np.flatnonzero(ranking.owners == g)
            self._counts.append(np.concatenate([[0], np.cumsum(ranking.lengths[blocks])]))
            self._ranks.append(np.concatenate([[-1], blocks]))

    def counts(self, index_NG: Counts) -> Counts:
        """Channels that each group loses, shape ``(N, G)``."""
        return np.stack([steps[index_NG[:, g]] for g, steps in enumerate(self._counts)], axis=1)

    def highest_ranks(self, index_NG: Counts) -> Counts:
        """The position in the ranking of the most important block that goes, shape ``(N,)``."""
        return np.stack([ranks[index_NG[:, g]] for g, ranks in enumerate(self._ranks)], axis=1).max(1)

    def chunks(self, around_G: Counts) -> Iterator[Counts]:
        """Combinations as positions on the ladders, shape ``(N, G)`` each."""
        lengths = [len(steps) for steps in self._counts]
        if math.prod(lengths) <= _MOST:
            yield from _chunked(itertools.product(*map(range, lengths)))
            return
        here = [int(np.searchsorted(steps, count)) for steps, count in zip(self._counts, around_G, strict=True)]
        yield from _chunked(itertools.islice(_pairs(here, lengths), _MOST))


def _pairs(here: Sequence[int], lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """Where one group steps back and another one forth, the shortest steps first: that costs the ranking least."""
    pairs = list(itertools.permutations(range(len(here)), 2))
    for back, forth in sorted(itertools.product(range(_STEPS), repeat=2), key=sum):
        for one, other in pairs:
            if back <= here[one] and here[other] + forth < lengths[other]:
                yield [h - back * (g == one) + forth * (g == other) for g, h in enumerate(here)]


_STEPS = 16  # one more than the blocks that a group goes back or forth at the most


def _chunked(combinations: Iterator[Sequence[int]]) -> Iterator[Counts]:
    while part := list(itertools.islice(combinations, _CHUNK)):
        yield np.array(part, dtype=np.int64)
