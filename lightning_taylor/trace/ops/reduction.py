"""Rules for operators that work along dimensions: what lies along them is frozen, what lies across passes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

from lightning_taylor.trace.labels import Labels, collapse, compressed, is_constant, pairs, running, varying
from lightning_taylor.trace.ops.layer import spread_along, vector_of
from lightning_taylor.trace.ops.pointwise import combine, freeze_all, outputs_of, pointwise
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "along",
    "fold",
    "glu",
    "loss",
    "pad",
    "pass_across",
    "per_map",
    "pool",
    "reduce",
    "unpool",
]

_OF_SQUARES = ("norm", "linalg_vector_norm")
"""Reductions to which a zero adds nothing."""


def reduce(call: Call) -> Labels | Sequence[Labels | None] | None:
    """Mean, sum, norm, max over dimensions: passes channels that are not reduced over."""
    out = next(outputs_of(call))
    labels, partition = call.state.labels_of(call.operands[0]), call.state.partition
    assert labels is not None
    ndim = call.operands[0].ndim
    dim = call.get("dim")
    dims = tuple(range(ndim)) if dim is None or dim == [] else (dim,) if isinstance(dim, int) else tuple(dim)
    kept = []
    for slot in labels.slots:
        beside = len(labels.slots) == 1 and not labels.weight
        if is_constant(slot, dims) or (beside and _side_by_side(call, slot, dims)):
            kept.append(collapse(slot, dims, keepdim=out.ndim == ndim))
        elif call.name in _OF_SQUARES and not labels.weight and partition.options.attention_heads == "spread":
            call.state.pairs.freeze_unless(slot, Why.REDUCED(call.where))
        elif len(labels.slots) > 1 and not labels.weight:
            call.state.freeze_if_used(out, slot, Why.REDUCED(call.where))
        elif not call.state.statistics.mark(call, labels, slot, dims):
            partition.freeze(slot, Why.REDUCED(call.where))
    result = Labels(tuple(kept), labels.weight) if kept else None
    return [result] * len(list(outputs_of(call)))


def _side_by_side(call: Call, slot: torch.Tensor, dims: tuple[int, ...]) -> bool:
    """Tie channels of several layers that lie beside each other along these dimensions (tokens, branches), if they do.

    Those of one layer would lie along the dimension that has most of them, and could not be told apart any more.
    """
    over = frozenset(d % slot.ndim - slot.ndim for d in dims)
    if over & running(slot) or bool((compressed(slot) == NEUTRAL).any()):
        return False
    first = slot
    for d in over:
        first = first.narrow(d, 0, 1)
    call.state.partition.tie(*pairs(slot, first.expand(slot.shape)))
    return True


def along(call: Call) -> Labels | Sequence[Labels | None] | None:
    """Softmax, cumulative sums, sorting: free across the given dimension, frozen along it."""
    labels = call.state.labels_of(call.operands[0])
    assert labels is not None
    dim = call.get("dim")
    outputs = list(outputs_of(call))
    dims, kept = (-1 if dim is None else dim,), []
    for slot in labels.slots:
        if is_constant(slot, dims):
            kept.append(collapse(slot, dims, keepdim=True))
        else:
            call.state.partition.freeze(slot, Why.ORDERED(call.where))
    return [Labels(tuple(slot.expand(out.shape) for slot in kept), labels.weight) if kept else None for out in outputs]


def per_map(call: Call) -> Sequence[Labels | None]:
    """Pooling, resizing, spatial padding: each feature map on its own, over the trailing dimensions."""
    out = next(outputs_of(call))
    found = re.search(r"([123])d", call.name)
    spatial = tuple(range(-int(found.group(1)), 0)) if found else tuple(range(-(out.ndim - 2), 0))
    labels = pass_across(call, spatial, out.shape)
    return [labels] * len(list(outputs_of(call)))  # where a maximum lay is of its channel, too


def pass_across(call: Call, dims: tuple[int, ...], shape: torch.Size) -> Labels | None:
    """Let channels pass that lie across the dimensions along which an operator works; freeze the others."""
    labels, kept = call.state.labels_of(call.operands[0]), []
    reason = Why.POSITIONS(call.where)
    if labels is None or (labels.weight and len(labels.slots) > 1):
        return freeze_all(call, reason)
    for slot in labels.slots:
        if is_constant(slot, dims):
            kept.append(collapse(slot, dims, keepdim=True).expand(shape))
        else:
            call.state.partition.freeze(slot, reason)
    return Labels(tuple(kept)) if kept else None


def unpool(call: Call) -> Labels | None:
    """Put maxima back where they lay: each map goes with the one whose places it takes."""
    given, places = (call.state.labels_of(tensor) for tensor in call.operands[:2])
    if given is None or places is None or given.weight or len(given.slots) != 1:
        return freeze_all(call, Why.POSITIONS(call.where))
    call.state.partition.tie(*pairs(given.slots[0], places.slots[0]))
    return pass_across(call, tuple(range(-int(call.name[-2]), 0)), call.out.shape)


def fold(call: Call) -> Labels | None:
    """Put patches together to maps, the inverse of ``unfold``: all entries of a channel's patch go together."""
    labels = call.state.labels_of(call.operands[0])
    if labels is None or len(labels.slots) != 1 or varying(labels.slots[0]) != {-2}:
        return freeze_all(call, Why.POSITIONS(call.where))
    slot = labels.slots[0]
    entries_CK = vector_of(slot, slot.ndim - 2).view(-1, math.prod(call.get("kernel_size")))
    first_C1 = entries_CK[:, :1]
    call.state.partition.tie(*pairs(entries_CK, first_C1.expand(entries_CK.shape)))
    call.state.partition.freeze(entries_CK[(entries_CK == NEUTRAL).any(1)], Why.MIXED(call.where))
    return Labels((spread_along(first_C1.flatten(), call.out.ndim - 3, call.out.shape),))


def loss(call: Call) -> Labels | None:
    """A loss of each element, which is summed or averaged over all of them unless it is asked not to be."""
    return pointwise(call) if call.get("reduction") == 0 else freeze_all(call, Why.REDUCED(call.where))


def glu(call: Call) -> Labels | None:
    """Two halves along a dimension, one gating the other: they go together."""
    labels = call.state.labels_of(call.operands[0])
    assert labels is not None
    one, other = labels.slots[0].chunk(2, dim=call.get("dim"))
    return Labels((combine(call, one, other, one.shape),))


def pad(call: Call) -> Labels | Sequence[Labels | None] | None:
    """Constant padding: of positions, neutral; of channels, entries that stand for nothing."""
    labels = call.state.labels_of(call.operands[0])
    assert labels is not None
    amounts = call.get("pad")
    padded = {-1 - i // 2 for i, amount in enumerate(amounts) if amount}
    if len(labels.slots) != 1:
        return freeze_all(call, Why.PADDED_PARAMETER(call.where))
    slot = labels.slots[0]
    if varying(slot) & padded:
        return Labels((torch.ops.aten.constant_pad_nd(slot.contiguous(), amounts, NEUTRAL),))
    for dim in padded:
        slot = slot.narrow(dim, 0, 1)
    return Labels((slot.expand(call.out.shape),), labels.weight)


def pool(call: Call) -> Labels | None:
    """What picks or mixes positions by coordinates: maps ``(N, C, ...)`` and regions or a grid to ``(K, C, ...)``."""
    maps, regions = (call.state.labels_of(tensor) for tensor in call.operands[:2])
    what = "regions" if call.name.startswith("roi") else "positions"
    call.state.freeze(regions, Why.COORDINATES(call.where, what=what))
    if maps is None:
        return None
    others = (0, *range(2, call.operands[0].ndim))
    if maps.weight or not is_constant(maps.slots[0], others):
        return freeze_all(call, Why.POSITIONS(call.where))
    return Labels((collapse(maps.slots[0], others, keepdim=True).expand(call.out.shape),))
