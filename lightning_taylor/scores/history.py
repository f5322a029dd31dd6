"""Scores with a memory: what a channel had at the last event still counts after it.

Shape legend: C = channels of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from lightning_taylor.graph.channel_graph import ChannelGraph

__all__ = ["History"]

_PREFIX = "history."


@final
class History:
    r"""Moving average of scores over events, channel by channel.

    .. math::  \bar\Theta_e = m\, \bar\Theta_{e-1} + (1 - m)\, \Theta_e

    A group that had no score before begins with its first one; one that has none now keeps none.

    Args:
        graph: at the present widths.
        momentum: m, in [0, 1); 0 remembers nothing.

    Example:
        >>> from lightning_taylor.graph.trace import trace_channels
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> history = History(trace_channels(net, torch.rand(1, 2)), momentum=0.5)
        >>> history.follow({"0": torch.tensor([1.0, 2.0, 3.0])}, {"0": torch.tensor([1])})
        >>> history.blend({"0": torch.tensor([5.0, 5.0])})
        {'0': tensor([3., 4.])}
    """

    def __init__(self, graph: ChannelGraph, momentum: float) -> None:
        self._sizes = {name: group.size for name, group in graph.groups.items()}
        self._momentum = momentum
        self._past: dict[str, Tensor] = {}

    def blend(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group name -> shape ``(C,)``: the scores since the last event, mixed with those at it."""
        m = self._momentum
        return {
            name: m * self._past[name] + (1 - m) * score_C if name in self._past else score_C
            for name, score_C in scores.items()
        }

    def follow(self, scores: Mapping[str, Tensor], remove: Mapping[str, Tensor]) -> None:
        """Remember the blended scores at an event, of the channels that stay.

        Args:
            scores: group name -> scores at the widths before the event.
            remove: group name -> indices of the channels that went.
        """
        if not self._momentum:
            return
        for name, score_C in scores.items():
            stays_C = torch.ones(len(score_C), dtype=torch.bool)
            stays_C[remove.get(name, torch.zeros(0, dtype=torch.int64)).cpu()] = False
            self._past[name] = score_C[stays_C]

    def state(self) -> dict[str, Tensor]:
        """What is remembered, as plain CPU tensors."""
        return {_PREFIX + name: score_C.clone() for name, score_C in self._past.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the entries of a ``state`` that are the history's.

        Raises:
            ValueError: if one was remembered at another width.
        """
        past = {key.removeprefix(_PREFIX): t for key, t in state.items() if key.startswith(_PREFIX)}
        for name, score_C in past.items():
            if len(score_C) != self._sizes.get(name):
                raise ValueError(
                    f"the remembered scores of group {name!r} are {len(score_C)}, and it has {self._sizes.get(name)} "
                    "channels; restore them only after the model has the widths of the checkpoint"
                )
        self._past = {name: score_C.cpu().clone() for name, score_C in past.items()}
