"""How much a channel's activation tells about the label.

Shape legend: C = channels of all groups, N = examples of a batch or all that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors
from typing_extensions import override

from lightning_taylor.criteria.activations import position_means
from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.hooked import HookedScorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.formulas import information_gain
from lightning_taylor.scores.statistics_hook import StatisticsHooks
from lightning_taylor.utilities.calls import batch_size, tensors_in
from lightning_taylor.utilities.checks import check_whole

__all__ = [
    "MutualInformation",
]


@final
class MutualInformation(Criterion):
    r"""Information gain between a channel's activation and the label.

    .. math::  \Theta_c = H(x_c) + H(y) - H(x_c, y)

    with ``x`` the mean activation of an example over the positions of the map (and the layers that read it), in
    ``bins`` intervals of equally many examples, and ``y`` its label.

    Units: nats; see ``formulas.information_gain``. Of the last ``examples`` training examples since the last event,
    of all ranks. They are kept as numbers, four bytes for each channel and example: 35 MB for 4,224 channels and the
    default, in every checkpoint too. Fewer than some hundred make estimates that differ by chance more than by worth. A
    ``training_step`` that takes ``dataloader_iter`` shows no batch, and gets no scores.

    Args:
        bins: how many intervals.
        examples: how many examples are kept.
        target: where the labels are in a batch: a key or a position; by default the only tensor of whole numbers,
            one for each example.

    Raises:
        ValueError: for fewer than 2 bins or examples; and at the first batch, if it has no such tensor or several.

    Source: Molchanov et al. 2017, section 2.2, "Mutual information". Neither the intervals nor the number of examples
    is given there.

    Example:
        >>> MutualInformation(bins=4)
        MutualInformation(bins=4, examples=2048, target=None)
    """

    def __init__(self, bins: int = 8, examples: int = 2048, target: int | str | None = None) -> None:
        for name, value in (("bins", bins), ("examples", examples)):
            check_whole(name, value, at_least=2)
        self.bins = bins
        self.examples = examples
        self.target = target

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Place a forward pre-hook on every layer that reads a channel of the graph."""
        return _InformationScorer(model, graph, self.bins, self.examples, self.target)


@final
class _InformationScorer(HookedScorer[StatisticsHooks]):
    def __init__(
        self, model: nn.Module, graph: ChannelGraph, bins: int, examples: int, target: int | str | None
    ) -> None:
        self._bins, self._examples, self._target = bins, examples, target
        super().__init__(StatisticsHooks(model, graph, lambda x, dim: position_means(x, dim).unsqueeze(0)))
        self._label_N: Tensor | None = None
        self._kept = self._empty()
        self._fresh = self._empty()

    def _empty(self) -> list[tuple[Tensor, Tensor]]:
        """Values of shape ``(N, C)`` with labels of shape ``(N,)``, of no example."""
        channels, device = self.hooks.matrix.channels, self.hooks.device
        return [(torch.zeros(0, channels, device=device), torch.zeros(0, dtype=torch.int64, device=device))]

    @override
    def on_batch(self, batch: Any) -> None:
        self._label_N = _labels(batch, self._target)

    @override
    def end_batch(self, *, examples: int, grad_scale: float | Tensor = 1.0) -> None:
        taken, label_N, self._label_N = self.hooks.take(examples), self._label_N, None
        if taken is None or label_N is None:
            return
        (value_CN,), seen_C = taken
        # What was not read, and a batch that is not finite, is left out when the scores are asked for: nan.
        good_C = seen_C & value_CN.isfinite().all()
        value_CN = torch.where(good_C[:, None], value_CN, torch.nan)
        self._fresh.append((value_CN.t().float(), label_N.to(value_CN.device)))

    @override
    def sync(self) -> None:
        value_NC, label_N = _joined(self._fresh)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            value_NC, label_N = torch.cat(gather_all_tensors(value_NC)), torch.cat(gather_all_tensors(label_N))
        self._fresh = self._empty()
        self._kept.append((value_NC, label_N))
        # Not at every step: it copies all that is kept.
        if sum(len(labels) for _, labels in self._kept) > 2 * self._examples:
            self._kept = [self._last(self._kept)]

    def _last(self, pieces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        value_NC, label_N = _joined(pieces)
        return value_NC[-self._examples :], label_N[-self._examples :]

    @override
    def scores(self) -> dict[str, Tensor]:
        value_NC, label_N = self._last([*self._kept, *self._fresh])
        score_C = torch.full((value_NC.shape[1],), torch.nan, device=value_NC.device)
        if not len(value_NC):
            return self.hooks.matrix.by_group(score_C)
        known_NC = ~value_NC.isnan()
        # Groups that some batch did not read have fewer examples; most have the same ones.
        for pattern_N in known_NC.unique(dim=1).t():
            if bool(pattern_N.any()):
                same_C = (known_NC == pattern_N[:, None]).all(0)
                value_CN = value_NC[pattern_N][:, same_C].t()
                score_C[same_C] = information_gain(value_CN, label_N[pattern_N], bins=self._bins)
        return self.hooks.matrix.by_group(score_C)

    @override
    def state(self) -> dict[str, Tensor]:
        value_NC, label_N = self._last([*self._kept, *self._fresh])
        return {"values": value_NC.cpu().clone(), "labels": label_N.cpu().clone()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        channels = self.hooks.matrix.channels
        if "values" not in state or state["values"].shape[1] != channels:
            raise ValueError(
                f"the gathered activations are {[tuple(t.shape) for t in state.values()]}, and this model has "
                f"{channels} channels in its groups; restore them only after the model has the widths of the checkpoint"
            )
        device = self.hooks.device
        self._kept = [(state["values"].to(device), state["labels"].to(device))]
        self._fresh = self._empty()

    @override
    def merge_states(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([state[name] for state in states]) for name in ("values", "labels")}


def _joined(pieces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, labels = zip(*pieces, strict=True)
    return torch.cat(values), torch.cat(labels)


def _labels(batch: Any, target: int | str | None) -> Tensor:
    """Shape ``(N,)``, int64: the labels of a batch."""
    examples = batch_size(batch)
    try:
        candidates = list(tensors_in(batch if target is None else batch[target]))
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"target={target!r} is not in the batch ({type(error).__name__}: {error})") from error
    labels = [t for t in candidates if t.numel() == examples and not (t.is_floating_point() or t.is_complex())]
    if len(labels) != 1:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in candidates) or "no tensor"
        raise ValueError(
            f"MutualInformation needs one label for each of the batch's {examples} examples, as whole numbers, and "
            f"found {len(labels)} such tensors among {shapes}; set target= to the key or position of the labels, or "
            "use another criterion"
        )
    return labels[0].detach().reshape(-1).long()
