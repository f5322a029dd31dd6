"""Rules for pointwise operators: what the operands carry at the same place goes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_taylor.graph.types import Role
from lightning_taylor.trace.labels import Labels, compressed, pairs, running, varying
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "combine",
    "combine_weights",
    "freeze_all",
    "keep_extent",
    "outputs_of",
    "pointwise",
]


def freeze_all(call: Call, reason: str) -> None:
    """Freeze what any argument carries."""
    for tensor in call.operands:
        call.state.freeze(call.state.labels_of(tensor), reason)


def outputs_of(call: Call) -> Any:
    """Every tensor that an operator returned."""
    return iter([call.out] if isinstance(call.out, Tensor) else [t for t in call.out if isinstance(t, Tensor)])


def pointwise(call: Call) -> Labels | None:
    """Tie what the operands carry at the same place."""
    shape = next(t.shape for t in outputs_of(call))
    operands = [x for t in call.operands if (x := call.state.labels_of(t)) is not None]
    neutral = [t for t in call.operands if call.state.labels_of(t) is None]
    operands = _without_fixed_slots(call, operands, neutral)
    if not operands:
        return None
    if all(x.weight for x in operands):
        return combine_weights(call, operands, shape)
    if any(len(x.slots) > 1 and not x.weight for x in operands):
        return _combine_slots(call, operands, shape)
    result: Tensor | None = None
    for x in sorted(operands, key=lambda x: x.weight):
        slot = x.slots[0] if not x.weight else _matching_slot(call, x, result, shape)
        if slot is not None:
            result = slot if result is None else combine(call, result, slot, shape)
    return None if result is None else Labels((result.expand(shape),))


def keep_extent(call: Call) -> Labels | None:
    """The output has the extent of the first argument and nothing else of it (``zeros_like``)."""
    labels = call.state.labels_of(call.operands[0])
    return Labels(labels.slots) if labels and not labels.weight else None


def _combine_slots(call: Call, operands: Sequence[Labels], shape: torch.Size) -> Labels | None:
    """Tie the slots of all operands that run along the same dimension."""
    slots: list[Tensor] = []
    for x in sorted(operands, key=lambda x: (x.weight, -len(x.slots))):
        repeated = frozenset().union(*(_spread(slot, shape) for slot in x.slots))
        for slot in (slot.expand(shape) for slot in x.slots):
            if any(torch.equal(compressed(slot, known), compressed(known, slot)) for known in slots):
                continue
            same = [i for i, known in enumerate(slots) if varying(known) & varying(slot)]
            if len(same) == 1:
                slots[same[0]] = combine(call, slots[same[0]], slot, shape)
                if x.weight:
                    call.state.partition.assign(slot, Role.PASS_THROUGH)
            elif same or x.weight or (varying(slot) and any(varying(known) & repeated for known in slots)):
                call.state.partition.freeze(slot, Why.SPREAD(call.where))
            else:
                slots.append(slot)
    return Labels(tuple(slots)) if slots else None


def _matching_slot(call: Call, x: Labels, result: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Of a bare parameter's dimensions, the one that runs along the activation's channels."""
    along = running(result.expand(shape)) if result is not None else frozenset()
    found = None
    for slot in x.slots:
        if found is None and varying(slot) & along:
            found = slot
            call.state.partition.assign(slot, Role.PASS_THROUGH)
        else:
            call.state.partition.freeze(slot, Why.BARE_PARAMETER(call.where))
    return found


def _without_fixed_slots(call: Call, operands: list[Labels], neutral: list[Tensor]) -> list[Labels]:
    """A parameter beside something without channels but with extent (the network's input) cannot shrink there."""
    kept = []
    for x in operands:
        if x.weight:
            fixed = {d - t.ndim for t in neutral for d in range(t.ndim) if t.shape[d] > 1}
            stays = tuple(s for s in x.slots if not varying(s) & fixed)
            for s in x.slots:
                if varying(s) & fixed:
                    call.state.partition.freeze(s, Why.BESIDE_NO_CHANNELS(call.where))
            x = Labels(stays, weight=True)
        if x.slots:
            kept.append(x)
    return kept


def combine_weights(call: Call, operands: Sequence[Labels], shape: torch.Size) -> Labels:
    """Arithmetic on parameters: dimensions that run alike are tied, the others kept side by side.

    What is tied plays one role: where channels are read by a sum of two parameters, both have to ignore them.
    """
    partition, slots = call.state.partition, list[Tensor]()
    # A parameter as it is goes before what is made of several: a layer is called after it.
    ordered = sorted(operands, key=lambda x: len({axis[0] for slot in x.slots for axis in partition.axes_of(slot)}))
    for slot in (s.expand(shape) for x in ordered for s in x.slots):
        same = [known for known in slots if _run_alike(known, slot)]
        if not same:
            slots.append(slot)
            continue
        one, other = sorted((same[0], slot), key=lambda s: len(varying(s)))
        met = combine(call, one, other, shape)
        slots = [met if known is same[0] else known for known in slots]
        partition.play_alike(one, other)
    return Labels(tuple(slots), weight=True)


def _run_alike(one: Tensor, other: Tensor) -> bool:
    """Whether parameters' dimensions are the same; that of a flat kernel is its channels times its positions."""
    few, many = sorted((varying(one), varying(other)), key=len)
    return few == many or (len(few) == 1 and min(many) in few)


def combine(call: Call, one: Tensor, other: Tensor, shape: torch.Size) -> Tensor:
    """Tie two operands' labels; each takes the other's where it has none of its own."""
    partition = call.state.partition
    a, b = one.expand(shape), other.expand(shape)
    # An operand that is spread over the other's channels (an attention map over all of them) belongs to none.
    if _spread(one, shape) & varying(b):
        partition.freeze(one, Why.SPREAD(call.where))
        return b
    if _spread(other, shape) & varying(a):
        partition.freeze(other, Why.SPREAD(call.where))
        return a
    partition.tie(*pairs(a, b))
    if torch.equal(compressed(a, b), compressed(b, a)):
        return a
    small_a, small_b = compressed(a, b), compressed(b, a)
    for mine, its in ((small_a, small_b), (small_b, small_a)):
        hole = mine == NEUTRAL
        if bool(hole.any()) and not bool(hole.all()):
            partition.freeze(its[hole], Why.PADDED(call.where))
    return torch.where(small_a == NEUTRAL, small_b, small_a).expand(shape)


def _spread(labels: Tensor, shape: torch.Size) -> frozenset[int]:
    """The dimensions, from the end, along which broadcasting repeats a tensor; none if it carries nothing."""
    grown = frozenset(d for d in range(-len(shape), 0) if shape[d] > 1 and (-d > labels.ndim or labels.shape[d] == 1))
    return grown if grown and bool((compressed(labels) != NEUTRAL).any()) else frozenset()
