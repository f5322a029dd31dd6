"""Statistics over the channels: part of a normalisation if they come back to the channels they were taken of.

``x * rsqrt(mean(x ** 2))`` is what an RMSNorm runs, and a LayerNorm that somebody wrote out looks much alike. No
operator says so: an average over channels is marked, the mark goes along with whatever is made of it element by
element, and where it meets the channels again it has normalised them. One that goes anywhere else freezes them.

How it could fail, and where that is caught: the proof by trial knows a call by its number along the forward pass. If
a pass of the proof takes another course than the trace, the numbers mean other calls; the twin then averages over the
wrong entries, differs from the smaller network, and the channels are frozen.

Shape legend: C = channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_taylor.graph.types import Axis
from lightning_taylor.trace.labels import Labels, collapse, united, varying
from lightning_taylor.trace.operator_call import OperatorCall
from lightning_taylor.trace.partition import Constraint, LabelPartition
from lightning_taylor.trace.reasons import Why

__all__ = [
    "AVERAGES",
    "MaskedNormMode",
    "NormStatistics",
]

AVERAGES = frozenset("mean var std var_mean std_mean norm linalg_vector_norm".split())
"""The operators whose outcome may be a statistic. Not ``sum``: what is divided by a sum is a softmax, or a share."""

_COPIES = {"clone", "contiguous", "_to_copy"}


@dataclass(frozen=True, eq=False)
class _Mark:
    """A statistic over the channels of these labels, shape ``(C,)``, and the operator that took it."""

    labels: Tensor
    where: str


class NormStatistics(Constraint):
    """The statistics over channels of one trace, by the order in which they are taken."""

    def __init__(self, partition: LabelPartition) -> None:
        self._partition = partition
        self._count = 0
        self._marked_calls: dict[int, tuple[int, Tensor]] = {}
        # The tensors themselves, so that no id is given twice; see ``Tracer``.
        self._marks: dict[int, tuple[Tensor, _Mark]] = {}

    def next_call(self, name: str) -> None:
        """Count one more operator that ran."""
        self._count += name in AVERAGES

    def mark(self, call: OperatorCall, x: Labels, slot: Tensor, dims: tuple[int, ...]) -> bool:
        """Mark the outcome of a reduction over the channels of a slot; False if it is no average of channels alone."""
        over = {d % slot.ndim - slot.ndim for d in dims} & varying(slot)
        if call.name not in AVERAGES or x.weight or len(x.slots) > 1 or len(over) > 1:
            return False
        (dim,) = over
        labels_C = united(self._partition, slot, dim)
        if labels_C is None or not self._partition.are_real(labels_C):
            return False
        self._marked_calls[self._count - 1] = dim, labels_C
        for tensor in (call.out,) if isinstance(call.out, Tensor) else call.out:
            self._marks[id(tensor)] = tensor, _Mark(labels_C, call.where)
        return True

    def propagate(self, call: OperatorCall, labels_of: Callable[[Tensor], Labels | None]) -> None:
        """Mark what an operator makes of marked tensors, or freeze what they are statistics of.

        Args:
            call: the operator that ran.
            labels_of: tensor -> what it carries.
        """
        marks = [self._marks[id(t)][1] for t in call.operands if id(t) in self._marks]
        if not marks:
            return
        met = [x for t in call.operands if (x := labels_of(t)) is not None and not x.weight]
        alike = all(torch.equal(mark.labels, marks[0].labels) for mark in marks)
        if not alike or not _is_elementwise(call) or self._writes_elsewhere(call):
            self._refuse(marks)
        elif not met:
            self._marks[id(call.out)] = call.out, marks[0]
        elif not all(any(_run_along(slot, marks[0].labels) for slot in x.slots) for x in met):
            self._refuse(marks)
        elif not self._partition.options.allow_inexact_norms:
            reason = Why.STATISTICS(marks[0].where)
            self._partition.freeze(marks[0].labels, reason)

    def at_output(self, tensor: Tensor) -> None:
        """Freeze what an output of the network is a statistic of."""
        if id(tensor) in self._marks:
            self._refuse([self._marks[id(tensor)][1]])

    def kept(self, keep: Mapping[Axis, Tensor]) -> dict[int, tuple[int, Tensor]]:
        """Number of the call -> (dimension from the end, whether each entry along it stays).

        Args:
            keep: as ``ChannelGraph.keep`` gives it.
        """
        kept = {}
        for number, (dim, labels_C) in self._marked_calls.items():
            stays_C = self._partition.staying(labels_C, keep)
            if not bool(stays_C.all()):
                kept[number] = dim, stays_C
        return kept

    def _refuse(self, marks: list[_Mark]) -> None:
        for mark in marks:
            self._partition.freeze(mark.labels, Why.REDUCED(mark.where))

    def _writes_elsewhere(self, call: OperatorCall) -> bool:
        """Return whether a statistic is written into something else, such as a buffer, which outlives the pass."""
        return any(call.out is t and id(t) not in self._marks for t in call.operands)


def _is_elementwise(call: OperatorCall) -> bool:
    """Return whether the one outcome has every element of the statistic at its place, or is a view of it."""
    func: Any = call.func
    tagged = torch.Tag.pointwise in func.tags or func.is_view or call.name in _COPIES
    return tagged and isinstance(call.out, Tensor)


def _run_along(slot: Tensor, labels_C: Tensor) -> bool:
    """Return whether a slot has these labels along one of its dimensions, at the first place of the others."""
    along = [collapse(slot, tuple(d for d in range(slot.ndim) if d - slot.ndim != dim), False) for dim in varying(slot)]
    return any(torch.equal(vector, labels_C) for vector in along)


_WEIGHT_AT = {"native_layer_norm": 2, "native_group_norm": 1, "_fused_rms_norm": 2}  # among the arguments


class MaskedNormMode(TorchDispatchMode):
    """While it is on, normalisations ignore the channels that are to go.

    Args:
        kept: id of a normalisation's weight -> the channels that stay, int64.
        averaged: number of a call among those of ``AVERAGES`` -> (dimension from the end, whether each entry along it
            stays), for normalisations that are written out.
    """

    def __init__(self, kept: Mapping[int, Tensor], averaged: Mapping[int, tuple[int, Tensor]]) -> None:
        super().__init__()
        self._kept = kept
        self._averaged = averaged
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, or ours in its place."""
        name = func.overloadpacket.__name__
        if name in AVERAGES:
            args = self._left_out(*args)
        out = func(*args, **(kwargs or {}))
        kept = self._kept.get(id(args[_WEIGHT_AT[name]])) if name in _WEIGHT_AT else None
        if kept is not None:
            # Into the same memory: what is random later fills a tensor in the order of its strides.
            out[0].copy_(_NORMS[name](kept, *args))
        return out

    def _left_out(self, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        """An average's arguments, without the entries that are to go."""
        dim, stays_C = self._averaged.get(self._count, (0, None))
        self._count += 1
        if stays_C is None or -dim > x.ndim or x.shape[dim] != len(stays_C):
            return x, *rest
        return x.index_select(dim, stays_C.nonzero().flatten().to(x.device)), *rest


def _layer_norm(kept: Tensor, x: Tensor, shape: Any, weight_C: Tensor, bias_C: Tensor | None, eps: float) -> Tensor:
    some = x.index_select(-1, kept.to(x.device))
    variance, mean = torch.var_mean(some, -1, correction=0, keepdim=True)
    out = (x - mean) * (variance + eps).rsqrt() * weight_C
    return out if bias_C is None else out + bias_C


def _rms_norm(kept: Tensor, x: Tensor, shape: Any, weight_C: Tensor, eps: float | None) -> Tensor:
    mean = x.index_select(-1, kept.to(x.device)).square().mean(-1, keepdim=True)
    return x * (mean + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt() * weight_C


def _group_norm(
    kept: Tensor, x: Tensor, weight_C: Tensor, bias_C: Tensor | None, n: int, c: int, r: int, groups: int, eps: float
) -> Tensor:
    mask_GK = torch.zeros(c, dtype=x.dtype, device=x.device).index_fill_(0, kept.to(x.device), 1).view(1, groups, -1, 1)
    x_NGKR = x.reshape(n, groups, c // groups, r)
    count_G = (mask_GK.sum((2, 3), keepdim=True) * r).clamp(min=1)
    mean_G = (x_NGKR * mask_GK).sum((2, 3), keepdim=True) / count_G
    variance_G = ((x_NGKR - mean_G).square() * mask_GK).sum((2, 3), keepdim=True) / count_G
    out = ((x_NGKR - mean_G) * (variance_G + eps).rsqrt()).view_as(x)
    along = [1, -1] + [1] * (x.ndim - 2)
    out = out * weight_C.view(along)
    return out if bias_C is None else out + bias_C.view(along)


_NORMS = {"native_layer_norm": _layer_norm, "native_group_norm": _group_norm, "_fused_rms_norm": _rms_norm}
