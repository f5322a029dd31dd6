"""Any criterion with the memory of ``TaylorBatch``: to ask whether another one gains by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.criteria import Criterion, Scorer
from lightning_taylor.criteria.taylor_batch import History
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.normalize import Normalization


@final
class Remembered(Criterion):
    """A criterion whose scores go on after an event with a share of what they were at it.

    Args:
        criterion: any.
        momentum: the share, in [0, 1), however many steps there were since.
    """

    def __init__(self, criterion: Criterion, momentum: float) -> None:
        self.criterion, self.momentum = criterion, momentum

    @property
    @override
    def default_normalization(self) -> Normalization:
        return self.criterion.default_normalization

    @property
    @override
    def default_cost_power(self) -> float:
        return self.criterion.default_cost_power

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Start the criterion's own scorer, and put the memory around two of its methods."""
        scorer, history = self.criterion.scorer(model, graph, event=event), History(graph, self.momentum)
        own_scores, own_carry_over = scorer.scores, scorer.carry_over

        def scores() -> dict[str, Tensor]:
            found = own_scores()
            return history.blend(found, found)  # a momentum that is given asks for no steps

        def carry_over(before: Scorer, remove: Mapping[str, Tensor]) -> None:
            own_carry_over(before, remove)
            history.carry_over(before.scores(), remove)

        # Why not a scorer around the scorer, as ``Combined`` is: twelve methods that only forward.
        vars(scorer).update(scores=scores, carry_over=carry_over)
        return scorer
