"""Many criteria scored in one pass over the data, batch by batch, so that the batches can be weighed afterwards.

Shape legend: C = channels of a group, B = batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from lightning_taylor.criteria.activations import ActivationMean, ActivationStd, APoZ
from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.baselines import Random, WeightMagnitude
from lightning_taylor.criteria.combined import Combined
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.study.oracle import Loss
from lightning_taylor.utilities.calls import batch_size, evaluating, moved

__all__ = [
    "Gathered",
    "every_criterion",
    "gather_scores",
]


@final
class Gathered:
    """What criteria saw of each batch.

    Args:
        scorers: name -> a closed scorer, to make scores of states.
        states: name -> the state after each batch alone.
    """

    def __init__(self, scorers: Mapping[str, Scorer], states: Mapping[str, Sequence[Mapping[str, Tensor]]]) -> None:
        self._scorers, self._states = dict(scorers), dict(states)

    @property
    def names(self) -> list[str]:
        """Of the criteria."""
        return list(self._scorers)

    def scores(self, name: str, batches: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Group name -> shape ``(C,)``: the scores of one criterion as if it had seen these batches only.

        Args:
            name: of the criterion.
            batches: their places, each as often as it counts; by default all once.
        """
        scorer, states = self._scorers[name], self._states[name]
        chosen = states if batches is None else [states[b] for b in batches]
        scorer.load_state(scorer.merge_states(chosen))
        return scorer.scores()


def gather_scores(
    model: nn.Module, graph: ChannelGraph, criteria: Mapping[str, Criterion], batches: Iterable[Any], loss: Loss
) -> Gathered:
    """Score a trained model with many criteria at once: one forward and one backward pass for each batch.

    In evaluation mode, as the oracle, and without any update of the weights; the gradients of the model are dropped.

    Args:
        model: any module.
        graph: its channel graph at the present widths.
        criteria: name -> criterion.
        batches: the data; each batch is moved to the model's device.
        loss: of a model and a batch; see ``study.oracle``.

    Raises:
        ValueError: if there is no batch.
    """
    final_scorers = {name: criterion.scorer(model, graph) for name, criterion in criteria.items()}
    for scorer in final_scorers.values():
        scorer.close()
    states: dict[str, list[Mapping[str, Tensor]]] = {name: [] for name in criteria}
    device = next(model.parameters()).device
    with evaluating(model):
        for place, batch in enumerate(batches):
            # The place stands for an event, so that random probes differ from batch to batch.
            scorers = {name: criterion.scorer(model, graph, event=place) for name, criterion in criteria.items()}
            try:
                _pass(model, list(scorers.values()), moved(batch, device), loss)
                for name, scorer in scorers.items():
                    states[name].append(scorer.state())
            finally:
                for scorer in scorers.values():
                    scorer.close()
    model.zero_grad(set_to_none=True)
    if not all(states.values()):
        raise ValueError("scores need data, and there is no batch")
    return Gathered(final_scorers, states)


def _pass(model: nn.Module, scorers: list[Scorer], batch: Any, loss: Loss) -> None:
    """One training step without the step, as the callback would tell it to a scorer."""
    model.zero_grad(set_to_none=True)
    for scorer in scorers:
        scorer.on_batch(batch)
    value = loss(model, batch)
    for scorer in scorers:
        scorer.on_loss(value)
    for scorer in scorers:
        scorer.before_backward()
    value.backward()
    for scorer in scorers:
        scorer.after_backward()
        scorer.before_step()
        scorer.end_batch(examples=batch_size(batch))


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
