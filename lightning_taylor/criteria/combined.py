"""Two criteria at once, mixed in a fixed proportion.

Shape legend: C = channels of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final, get_args

from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.normalize import Normalization, normalize
from lightning_taylor.utilities.checks import is_number

__all__ = [
    "Combined",
]


@final
class Combined(Criterion):
    r"""Linear combination of the normalised scores of two criteria.

    .. math::  \Theta_c = (1 - \lambda)\, \hat\Theta^{first}_c + \lambda\, \hat\Theta^{second}_c

    each normalised over its group. The callback normalises the sum once more; ``normalization="none"`` there leaves
    it as it is here, as in the paper. Only groups that both can score have a score.

    Units: none, unless ``normalization`` is "none".

    Args:
        first: the criterion to begin with.
        second: the criterion that is added to it.
        share: lambda, in [0, 1]. The paper's best, for Taylor and mean activation, lie between 0 and 0.12 and gain less
            than 0.004 of correlation.
        normalization: of each, before they are added.

    Raises:
        ValueError: for anything else.

    Source: Molchanov et al. 2017, appendix A.5.

    Example:
        >>> from lightning_taylor.criteria import ActivationMean, TaylorBatch
        >>> Combined(TaylorBatch(), ActivationMean(), share=0.25)
        Combined(first=TaylorBatch(momentum=None), second=ActivationMean(), share=0.25, normalization='l2')
    """

    def __init__(
        self, first: Criterion, second: Criterion, share: float = 0.1, normalization: Normalization = "l2"
    ) -> None:
        for name, value in (("first", first), ("second", second)):
            if not isinstance(value, Criterion):
                raise ValueError(f"{name} takes a criterion such as Taylor(), got {value!r}")
        if not is_number(share) or not 0 <= share <= 1:
            raise ValueError(f"share must be a number in [0, 1], got {share!r}")
        if normalization not in get_args(Normalization):
            raise ValueError(
                f"normalization must be one of {', '.join(get_args(Normalization))}, got {normalization!r}"
            )
        self.first = first
        self.second = second
        self.share = float(share)
        self.normalization: Normalization = normalization

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Start both."""
        first = self.first.scorer(model, graph, event=event)
        try:
            second = self.second.scorer(model, graph, event=event)
        except BaseException:
            first.close()
            raise
        return _CombinedScorer({"first": first, "second": second}, self.share, self.normalization)


@final
class _CombinedScorer(Scorer):
    def __init__(self, scorers: Mapping[str, Scorer], share: float, normalization: Normalization) -> None:
        self._scorers = dict(scorers)
        self._shares = dict(zip(scorers, (1 - share, share), strict=True))
        self._normalization: Normalization = normalization

    @property
    @override
    def unscorable(self) -> Mapping[str, str]:
        return {name: why for scorer in self._each() for name, why in scorer.unscorable.items()}

    def _each(self) -> Iterable[Scorer]:
        return self._scorers.values()

    @override
    def pause(self) -> None:
        for scorer in self._each():
            scorer.pause()

    @override
    def resume(self) -> None:
        for scorer in self._each():
            scorer.resume()

    @override
    def on_batch(self, batch: Any) -> None:
        for scorer in self._each():
            scorer.on_batch(batch)

    @override
    def compiles(self, examples: int) -> bool:
        return all(scorer.compiles(examples) for scorer in self._each())

    @override
    def on_loss(self, loss: Tensor) -> None:
        for scorer in self._each():
            scorer.on_loss(loss)

    @override
    def before_backward(self) -> None:
        for scorer in self._each():
            scorer.before_backward()

    @override
    def after_backward(self) -> None:
        for scorer in self._each():
            scorer.after_backward()

    @override
    def end_batch(self, *, examples: int, grad_scale: float | Tensor = 1.0) -> None:
        for scorer in self._each():
            scorer.end_batch(examples=examples, grad_scale=grad_scale)

    @override
    def drop_batch(self) -> None:
        for scorer in self._each():
            scorer.drop_batch()

    @override
    def before_step(self, parameters: Iterable[Tensor] | None = None, *, grad_scale: float | Tensor = 1.0) -> None:
        parameters = None if parameters is None else list(parameters)
        for scorer in self._each():
            scorer.before_step(parameters, grad_scale=grad_scale)

    @override
    def carry_over(self, before: Scorer, remove: Mapping[str, Tensor]) -> None:
        assert isinstance(before, _CombinedScorer)
        for name, scorer in self._scorers.items():
            scorer.carry_over(before._scorers[name], remove)

    @override
    def scores(self) -> dict[str, Tensor]:
        first, second = (normalize(scorer.scores(), self._normalization) for scorer in self._each())
        one, other = self._shares.values()
        return {name: one * score_C + other * second[name] for name, score_C in first.items() if name in second}

    @override
    def sync(self) -> None:
        for scorer in self._each():
            scorer.sync()

    @override
    def state(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": t for name, scorer in self._scorers.items() for key, t in scorer.state().items()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, scorer in self._scorers.items():
            scorer.load_state(_of(name, state))

    @override
    def merge_states(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        joined = {
            name: scorer.merge_states([_of(name, state) for state in states]) for name, scorer in self._scorers.items()
        }
        return {f"{name}.{key}": t for name, state in joined.items() for key, t in state.items()}

    @override
    def close(self) -> None:
        for scorer in self._each():
            scorer.close()


def _of(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of one of the two, under their own names."""
    return {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
