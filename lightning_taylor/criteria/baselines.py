"""Criteria that look at no data: the magnitude of the weights, and chance. What the others must beat.

Shape legend: C = channels of a group, M = entries of a weight dimension that one channel owns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import ChannelGroup, Role
from lightning_taylor.scores.consumers import traced_parameter
from lightning_taylor.scores.formulas import weight_magnitude
from lightning_taylor.scores.normalize import Normalization
from lightning_taylor.utilities.checks import check_whole

__all__ = [
    "Random",
    "WeightMagnitude",
]


@final
class WeightMagnitude(Criterion):
    r"""Mean squared weight of the kernels that produce the channel.

    .. math::  \Theta_c = \frac{1}{|w_c|} \sum_{w \in w_c} w^2

    over all entries of all kernels that make the channel: one for a plain convolution, several where layers are
    added up. Biases and batch norms are left out, as in the paper. Read at the event itself.

    Units: weight squared; independent of data and loss.

    Source: Molchanov et al. 2017, section 2.2, "Minimum weight".

    Example:
        >>> WeightMagnitude()
        WeightMagnitude()
    """

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Remember the model; it is read when the scores are asked for."""
        return _WeightScorer(model, graph)


@final
class _WeightScorer(Scorer):
    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._model, self._graph = model, graph
        self._unscorable = {
            name: "no kernel makes it" for name, group in graph.groups.items() if not self._kernels(group)
        }

    def _kernels(self, group: ChannelGroup) -> list[tuple[nn.Parameter, int, Tensor]]:
        """The weights that make the group's channels, with the dimension and the entries; no biases."""
        kernels = []
        for s in group.of(Role.PRODUCER):
            weight = traced_parameter(self._model, self._graph, s.tensor)
            if weight is not None and weight.ndim > 1:
                kernels.append((weight, s.dim, s.index))
        return kernels

    @property
    @override
    def unscorable(self) -> Mapping[str, str]:
        return self._unscorable

    @override
    def scores(self) -> dict[str, Tensor]:
        named = ((name, self._kernels(group)) for name, group in self._graph.groups.items())
        return {name: _mean_square(kernels) for name, kernels in named if kernels}


@final
class Random(Criterion):
    """Chance: uniform scores in [0, 1).

    The same for the same seed, event and group name: on every rank, after a resume, and whatever else draws random
    numbers. No state of any generator is read or changed.

    Units: none.

    Args:
        seed: another seed, another order.

    Raises:
        ValueError: for a seed that is no whole number.

    Source: the baseline of Molchanov et al. 2017, section 3.

    Example:
        >>> Random(seed=7)
        Random(seed=7)
    """

    def __init__(self, seed: int = 0) -> None:
        check_whole("seed", seed)
        self.seed = seed

    @property
    @override
    def default_normalization(self) -> Normalization:
        """Chance knows no groups."""
        return "none"

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Draw the scores; the model is not touched."""
        sizes = {name: group.size for name, group in graph.groups.items()}
        return _DrawnScorer({name: _draw(f"{self.seed}/{event}/{name}", size) for name, size in sizes.items()})


@final
class _DrawnScorer(Scorer):
    def __init__(self, drawn: Mapping[str, Tensor]) -> None:
        self._drawn = drawn

    @override
    def scores(self) -> dict[str, Tensor]:
        return {name: score_C.clone() for name, score_C in self._drawn.items()}


def _mean_square(kernels: list[tuple[nn.Parameter, int, Tensor]]) -> Tensor:
    """Mean over all entries of all kernels, each weighted by how many entries a channel has there."""
    total, count = 0.0, 0
    for weight, dim, index_CM in kernels:
        entries = weight.numel() // weight.shape[dim] * index_CM.shape[1]
        mean_M = weight_magnitude(weight.detach(), dim=dim)[index_CM.to(weight.device)]
        total = total + mean_M.mean(1).to("cpu", torch.float64) * entries
        count += entries
    assert isinstance(total, Tensor)
    return (total / count).to(torch.float32)


def _draw(key: str, size: int) -> Tensor:
    # Not hash(): Python salts it anew in every process.
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))
