"""The sums of scores between two events, as a metric that can be reduced over ranks.

Shape legend: C = channels of all groups, one after the other; S = statistics of each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

__all__ = [
    "ChannelSums",
]

_STATES = ("total", "examples")


class ChannelSums(Metric):
    r"""Weighted mean of per-channel scores over batches (or optimizer steps).

    .. math::  \bar\Theta_c = \frac{\sum_b n_b\, \Theta_{bc}}{\sum_b n_b}

    over the batches ``b`` in which channel ``c`` was seen and everything was finite. Born with one width and never
    resized: after a removal a new one is made.

    Units: those of the scores; ``total`` is score times weight, ``examples`` the weight.

    Ranks are reduced by their mean rather than their sum. The quotient is the same, and after ``settle`` every rank
    holds the same share: it can be settled again, added to, and restored on all ranks from the checkpoint of one.

    Args:
        channels: C.
        statistics: S, for scores that are made of several means: then they have shape ``(S, C)`` in place of ``(C,)``.
        dtype: of the sums, float32 or float64.
        device: where the sums are kept.

    Example:
        >>> sums = ChannelSums(2)
        >>> sums.update(torch.tensor([1.0, 2.0]), torch.tensor([True, True]), 3)
        >>> sums.update(torch.tensor([5.0, 0.0]), torch.tensor([True, False]), 1)
        >>> sums.compute()
        tensor([2., 2.])
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    total: Tensor
    examples: Tensor

    def __init__(
        self,
        channels: int,
        *,
        statistics: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        shape = (channels,) if statistics is None else (statistics, channels)
        for name in _STATES:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="mean")
        self.to(device)

    def update(self, score_C: Tensor, seen_C: Tensor, weight: float) -> None:
        """Add the scores of one batch; nothing if any of them is not finite.

        Args:
            score_C: shape ``(C,)``; what is not seen does not count.
            seen_C: shape ``(C,)``, bool: the channels of which there is evidence in this batch.
            weight: n, how many examples the scores are the mean of.
        """
        # A mask instead of an if: asking the device whether it is finite would wait for it.
        counts_C = seen_C & torch.isfinite(score_C).all()
        self.total = self.total + torch.where(counts_C, score_C, 0) * weight
        self.examples = self.examples + counts_C * weight

    def compute(self) -> Tensor:
        """Shape ``(C,)``; nan for a channel that was never seen."""
        return self.mean()

    def mean(self) -> Tensor:
        """As ``compute``, of this rank's sums only."""
        return self.total / self.examples

    def settle(self) -> None:
        """Replace every rank's sums by the mean over the ranks; a no-op on one process.

        One all-reduce of two numbers a channel (eight bytes in single precision), however many ranks there are. Why
        not ``Metric.sync``: it gathers the sums of all ranks on every rank.
        """
        if dist.is_available() and dist.is_initialized() and (ranks := dist.get_world_size()) > 1:
            both = torch.stack([getattr(self, name) for name in _STATES])
            dist.all_reduce(both)
            self._assign(dict(zip(_STATES, both / ranks, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """The sums as plain CPU tensors."""
        return {name: getattr(self, name).detach().cpu().clone() for name in _STATES}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state``.

        Raises:
            ValueError: if an entry is missing or was gathered at other widths.
        """
        for name in _STATES:
            shape = tuple(state[name].shape) if name in state else None
            if shape != tuple(self.total.shape):
                raise ValueError(
                    f"the gathered scores have {name!r} of shape {shape}, and this model has {self.total.shape[-1]} "
                    "channels in its groups; restore them only after the model has the widths of the checkpoint"
                )
        self._assign({name: state[name].to(self.total).clone() for name in _STATES})

    def _assign(self, states: Mapping[str, Tensor]) -> None:
        for name, value in states.items():
            setattr(self, name, value)
