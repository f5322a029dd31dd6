"""The Taylor criterion of 2019: the square of the batch's first-order change, read off the weights' gradients.

Shape legend: C = channels of all groups, I = entries of the weight dimension that reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Axis, Role
from lightning_taylor.scores.accumulator import ChannelSums
from lightning_taylor.scores.channel_matrix import Block, ChannelMatrix
from lightning_taylor.scores.consumers import traced_parameter
from lightning_taylor.scores.formulas import batch_contributions
from lightning_taylor.scores.normalize import Normalization
from lightning_taylor.utilities.checks import is_number

__all__ = [
    "History",
    "TaylorBatch",
]


@final
class TaylorBatch(Criterion):
    r"""Square of the first-order change of the batch's loss when the channel is removed.

    .. math::  \Theta_c = \Bigl( \sum_{l} \sum_{o,k} w_{lock}\, g_{lock} \Bigr)^2

    over the weights of all layers ``l`` that read the channel: the squared gradient of a gate of value 1 at their
    inputs. Needs no hooks; examples whose contributions have opposite signs cancel before the square.

    Units: loss squared, of one optimizer step: of its whole batch, accumulated and synchronised over ranks. With a
    mean-reduced loss it does not grow with the batch. Averaged over the optimizer steps since the last event.

    The scores outlive an event: a channel that stayed goes on with ``m`` times what it had there, plus ``1 - m`` times
    what the steps since then say (``History``). By default the past loses 2 % of its weight with each step that was
    scored since the last event: few steps rely on what was known before, many speak for themselves. When a guard goes
    back to an earlier network, the memory is lost.

    Evidence for the defaults (``notebooks/accuracy.md``): at 30 % of the FLOPs SqueezeNet, EfficientNet-Lite1,
    ResNet-20 and a VGG-16 with batch norm keep 0.7, 2.1, 1.5 and 0.4 points more with a momentum of 0.9 (an event every
    four or five steps) than with 0, which is -0.3, 1.2, 0.9 and 0.9 to ``Taylor``; at 50 % it is 0.9, 1.4, 1.3 and 0.0
    to ``Taylor`` (means of five seeds). It costs less than ``Taylor``, and scores layers that
    ``Taylor`` cannot.

    Args:
        momentum: ``m``, in [0, 1), whatever the number of steps; 0 begins anew at each event. None for
            ``0.98 ** steps``. The settings published with the paper have 0.9, and a comment that it did not help.

    Raises:
        ValueError: for a momentum outside of its range.

    Source: Molchanov et al. 2019, the group form of the importance (Eq. 7 as quoted by others).

    Example:
        >>> TaylorBatch(), TaylorBatch(momentum=0.9)
        (TaylorBatch(momentum=None), TaylorBatch(momentum=0.9))
    """

    def __init__(self, momentum: float | None = None) -> None:
        if momentum is not None and (not is_number(momentum) or not 0 <= momentum < 1):
            raise ValueError(f"momentum must be a number in [0, 1) or None, got {momentum!r}")
        self.momentum = None if momentum is None else float(momentum)

    @property
    @override
    def default_normalization(self) -> Normalization:
        """It is the change of the loss, squared."""
        return "none"

    @property
    @override
    def default_cost_power(self) -> float:
        """Twice that of ``Taylor``, since it is a square; better than 0 on both nets where it was measured."""
        return 1.0

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Remember the weights that read channels; the model is not touched."""
        return _TaylorBatchScorer(model, graph, self.momentum)


@final
class _TaylorBatchScorer(Scorer):
    needs_weight_gradient = True

    def __init__(self, model: nn.Module, graph: ChannelGraph, momentum: float | None) -> None:
        self._history = History(graph, momentum)
        self._unscorable: dict[str, str] = {}
        self._weights: dict[Axis, nn.Parameter] = {}
        parts = self._find_parts(model, graph)
        first = next(iter(self._weights.values()), None)
        double = any(w.dtype == torch.float64 for w in self._weights.values())
        self._matrix = ChannelMatrix(
            graph,
            {axis: weight.shape[axis[1]] for axis, weight in self._weights.items()},
            parts,
            dtype=torch.float64 if double else torch.float32,
            device=first.device if first is not None else torch.device("cpu"),
        )
        self._pending: dict[Axis, Tensor] = {}
        self._sums = ChannelSums(self._matrix.channels, dtype=self._matrix.dtype, device=self._matrix.device)

    def _find_parts(self, model: nn.Module, graph: ChannelGraph) -> list[Block[Axis]]:
        """Find the slices of all groups that are read through parameters only; the others become unscorable."""
        parts: list[Block[Axis]] = []
        for name, group in graph.groups.items():
            # What a product loses is the derivative by one of its sides.
            consumers = group.of(Role.CONSUMER, Role.QUERY)
            weights = {s.axis: traced_parameter(model, graph, s.tensor) for s in consumers}
            # Queries make their channels, too; what a product loses with them is their derivative alone.
            tied = {s.axis for s in group.of(Role.PRODUCER)} & {s.axis for s in group.of(Role.CONSUMER)}
            if reason := _why_not(weights, tied):
                self._unscorable[name] = reason
                continue
            self._weights.update({axis: weight for axis, weight in weights.items() if weight is not None})
            parts.extend(Block(name, s.axis, s.index) for s in consumers)
        return parts

    @property
    @override
    def unscorable(self) -> Mapping[str, str]:
        return self._unscorable

    @property
    @override
    def metric(self) -> ChannelSums:
        self._fold()
        return self._sums

    @override
    def before_step(self, parameters: Iterable[Tensor] | None = None, *, grad_scale: float | Tensor = 1.0) -> None:
        stepped = None if parameters is None else {id(p) for p in parameters}
        with torch.no_grad():
            entries = {
                axis: _unscaled(batch_contributions(weight.detach(), weight.grad, dim=axis[1])[None], grad_scale)
                for axis, weight in self._weights.items()
                if weight.grad is not None and (stepped is None or id(weight) in stepped)
            }
            # The layers of one group may have different optimizers, whose steps come one after the other.
            if entries.keys() & self._pending.keys():
                self._fold()
            self._pending.update(entries)

    @override
    def drop_batch(self) -> None:
        self._pending = {}

    def _fold(self) -> None:
        """Square what the steps since the last call contributed, one step of each weight at most."""
        if not self._pending:
            return
        entries, self._pending = self._pending, {}
        with torch.no_grad():
            # The share of a frozen layer is missing from the sum, not zero, and so is that of a layer whose optimizer
            # has yet to step; a layer that did not run has none.
            missing = [
                axis
                for axis, weight in self._weights.items()
                if not weight.requires_grad or (weight.grad is not None and axis not in entries)
            ]
            seen_C = self._matrix.channels_of(entries) & ~self._matrix.channels_of(missing)
            self._sums.update(self._matrix(entries, 1).squeeze(1).square(), seen_C, 1)

    @override
    def scores(self) -> dict[str, Tensor]:
        metric, by_group = self.metric, self._matrix.by_group
        return self._history.blend(by_group(metric.mean()), by_group(metric.examples))

    @override
    def carry_over(self, before: Scorer, remove: Mapping[str, Tensor]) -> None:
        self._history.carry_over(before.scores(), remove)

    @override
    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **self._history.state()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._history.load(state)
        super().load_state(state)


def _why_not(weights: Mapping[Axis, nn.Parameter | None], tied: Collection[Axis]) -> str | None:
    """Why what is read through these, of which some make it, has no score; None if it has one."""
    for (name, _), weight in weights.items():
        if weight is None:
            return f"read through the buffer {name!r}, which has no gradient"
    if tied:
        return f"read through {min(tied)[0]!r}, which makes its channels, too: one gradient is of both"
    return None if weights else "no layer reads its channels"


def _unscaled(scaled: Tensor, grad_scale: float | Tensor) -> Tensor:
    """One kernel fewer for every weight, where there is no scale."""
    return scaled if isinstance(grad_scale, float) and grad_scale == 1 else scaled / grad_scale


_PREFIX = "history."

_KEPT_PER_STEP = 0.98
"""About 0.9 over the four or five steps between two events with which a momentum of 0.9 was measured."""


@final
class History:
    r"""Moving average of scores over events, channel by channel.

    .. math::  \bar\Theta_e = m\, \bar\Theta_{e-1} + (1 - m)\, \Theta_e, \qquad m = 0.98^{n_e}

    with ``n_e`` the optimizer steps that ``\Theta_e`` is the mean of, unless another ``m`` is given. A group that had
    no score before begins with its first one; one that has none now keeps none.

    Args:
        graph: at the present widths.
        momentum: m, in [0, 1), for any number of steps; 0 remembers nothing, None goes by the steps.

    Example:
        >>> from lightning_taylor.trace.api import trace_channels
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> history = History(trace_channels(net, torch.rand(1, 2)), momentum=0.5)
        >>> history.carry_over({"0": torch.tensor([1.0, 2.0, 3.0])}, {"0": torch.tensor([1])})
        >>> history.blend({"0": torch.tensor([5.0, 5.0])}, {"0": torch.tensor([8.0, 8.0])})
        {'0': tensor([3., 4.])}
    """

    def __init__(self, graph: ChannelGraph, momentum: float | None) -> None:
        self._sizes = {name: group.size for name, group in graph.groups.items()}
        self._momentum = momentum
        self._past: dict[str, Tensor] = {}

    def blend(self, scores: Mapping[str, Tensor], steps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mix the scores since the last event with those at it.

        Args:
            scores: group name -> shape ``(C,)``.
            steps: group name -> shape ``(C,)``: how many optimizer steps each score is the mean of.

        Returns:
            Group name -> shape ``(C,)``.
        """
        return {name: self._mixed(name, score_C, steps[name]) for name, score_C in scores.items()}

    def _mixed(self, name: str, score_C: Tensor, steps_C: Tensor) -> Tensor:
        if name not in self._past:
            return score_C
        kept = _KEPT_PER_STEP**steps_C if self._momentum is None else self._momentum
        return kept * self._past[name] + (1 - kept) * score_C

    def carry_over(self, scores: Mapping[str, Tensor], remove: Mapping[str, Tensor]) -> None:
        """Remember the blended scores at an event, of the channels that stay.

        Args:
            scores: group name -> scores at the widths before the event.
            remove: group name -> indices of the channels that went.
        """
        if self._momentum == 0:
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
