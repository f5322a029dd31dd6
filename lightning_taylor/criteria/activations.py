"""Criteria that look at activations alone: their mean, their spread, how often they are positive.

Each looks at what the layers that read a channel receive: for a stack of convolution, ReLU and pooling the paper's
post-ReLU feature map, after the pooling.

Shape legend: L = leading entries as a layer saw them, I = its input channels, C = channels of all groups,
N = examples, S = statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.hooked import HookedScorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.accumulator import ChannelSums
from lightning_taylor.scores.statistics_hook import Statistic, StatisticsHooks

__all__ = [
    "APoZ",
    "ActivationMean",
    "ActivationStd",
    "position_means",
]


@final
class ActivationMean(Criterion):
    r"""Mean of the activation that the channel's readers receive.

    .. math::  \Theta_c = \frac{1}{|a_c|} \sum_i a_{ci}

    over positions, readers, calls and the examples since the last event, of all ranks. Signed: without a ReLU in
    front of the reader it may be negative, as the paper has it. Consumers count equally, whatever their resolution.

    Units: of the activation; independent of the loss. Sees every forward pass that can be trained on, also where no
    gradient arrives; passes without gradients (validation) do not count.

    Source: Molchanov et al. 2017, section 2.2, "Activation".

    Example:
        >>> ActivationMean()
        ActivationMean()
    """

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Place a forward pre-hook on every layer that reads a channel of the graph."""
        return _MomentScorer(model, graph, _mean, 1, lambda mean_SC: mean_SC[0])


@final
class ActivationStd(Criterion):
    r"""Standard deviation of the activation that the channel's readers receive.

    .. math::  \Theta_c = \sqrt{\frac{1}{|a_c|} \sum_i (a_{ci} - \mu_c)^2}

    over everything that ``ActivationMean`` averages at once: positions and examples alike, about one common mean.
    (The paper does not say whether the mean is of one example or of all.)

    Units: of the activation; independent of the loss.

    Source: Molchanov et al. 2017, section 2.2, "Activation".

    Example:
        >>> ActivationStd()
        ActivationStd()
    """

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Place a forward pre-hook on every layer that reads a channel of the graph."""
        return _MomentScorer(model, graph, _moments, 2, _deviation)


@final
class APoZ(Criterion):
    r"""Average share of positive activations among those that the channel's readers receive.

    .. math::  \Theta_c = \frac{1}{|a_c|} \sum_i [a_{ci} > 0]

    More positives, more important: the name counts zeros, the score what is left. After a pooling the maxima are
    counted, and without a ReLU in front of the reader it says little.

    Units: none, in [0, 1].

    Source: Hu et al. 2016, as read by Molchanov et al. 2017, section 2.2.

    Example:
        >>> APoZ()
        APoZ()
    """

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Place a forward pre-hook on every layer that reads a channel of the graph."""
        return _MomentScorer(model, graph, _positives, 1, lambda mean_SC: mean_SC[0])


@final
class _MomentScorer(HookedScorer[StatisticsHooks]):
    """Means over examples of some statistics, and a score made of them."""

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        statistic: Statistic,
        statistics: int,
        finish: Callable[[Tensor], Tensor],
    ) -> None:
        hooks, self._finish = StatisticsHooks(model, graph, statistic), finish
        self._sums = ChannelSums(hooks.matrix.channels, statistics=statistics, dtype=hooks.dtype, device=hooks.device)
        super().__init__(hooks, self._sums)

    # drop_batch stays a no-op: it comes after the forward pass that counts, and several evaluations of one batch make
    # a mean over that batch all the same.

    @override
    def end_batch(self, *, examples: int, grad_scale: float | Tensor = 1.0) -> None:
        if (taken := self.hooks.take(examples)) is not None:
            value_SCN, seen_C = taken
            self._sums.update(value_SCN.mean(2), seen_C, examples)

    @override
    def scores(self) -> dict[str, Tensor]:
        return self.hooks.matrix.by_group(self._finish(self._sums.mean()))


def position_means(x: Tensor, dim: int) -> Tensor:
    """Shape ``(L, I)``, at least float32: the mean over positions."""
    over = [d for d in range(1, x.ndim) if d != dim]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.mean(over, dtype=dtype) if over else x.to(dtype)


def _mean(x: Tensor, dim: int) -> Tensor:
    return position_means(x, dim).unsqueeze(0)


def _positives(x: Tensor, dim: int) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # A batch that is not finite has to show it.
    return position_means(torch.where(x.isfinite(), (x > 0).to(x.dtype), torch.nan), dim).unsqueeze(0)


def _moments(x: Tensor, dim: int) -> Tensor:
    """Mean and mean square, the latter by way of the variance: in the digits that a float32 has, both are sharp."""
    double = torch.float32 if x.device.type == "mps" else torch.float64
    over = [d for d in range(1, x.ndim) if d != dim]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not over:
        return torch.stack([x.to(double), x.to(double).square()])
    variance_LI, mean_LI = (t.to(double) for t in torch.var_mean(x, over, correction=0))
    return torch.stack([mean_LI, variance_LI + mean_LI.square()])


def _deviation(mean_SC: Tensor) -> Tensor:
    first_C, second_C = mean_SC
    return (second_C - first_C.square()).clamp_min(0).sqrt()
