"""Rules for pointwise operators: what the operands carry at the same place goes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_taylor.graph.types import Role
from lightning_taylor.trace.labels import Labels, compressed, pairs, varying
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "combine",
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
        return _combine_weights(call, operands, shape)
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
        for slot in (slot.expand(shape) for slot in x.slots):
            if any(torch.equal(compressed(slot, known), compressed(known, slot)) for known in slots):
                continue
            same = [i for i, known in enumerate(slots) if varying(known) & varying(slot)]
            if len(same) == 1:
                slots[same[0]] = combine(call, slots[same[0]], slot, shape)
                if x.weight:
                    call.state.partition.assign(slot, Role.PASS_THROUGH)
            elif same or x.weight or (slots and varying(slot) and _repeated(x, shape)):
                call.state.partition.freeze(slot, Why.SPREAD(call.where))
            else:
                slots.append(slot)
    return Labels(tuple(slots)) if slots else None


def _repeated(x: Labels, shape: torch.Size) -> bool:
    """Whether broadcasting repeats a tensor along a dimension."""
    return any(_spread(slot, shape) for slot in x.slots)


def _matching_slot(call: Call, x: Labels, result: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Of a bare parameter's dimensions, the one that runs along the activation's channels."""
    along = _running(result.expand(shape)) if result is not None else frozenset()
    found = None
    for slot in x.slots:
        if found is None and varying(slot) & along:
            found = slot
            call.state.partition.assign(slot, Role.PASS_THROUGH)
        else:
            call.state.partition.freeze(slot, Why.BARE_PARAMETER(call.where))
    return found


def _running(labels: Tensor) -> frozenset[int]:
    """The dimensions along which an activation's channels run.

    Of several, the one with most: tokens of two layers, put beside each other (a class token, those of an image), have
    two labels along the tokens at every channel.
    """
    runs = varying(labels)
    lines = {d: [slice(None) if d == i - labels.ndim else 0 for i in range(labels.ndim)] for d in runs}
    counts = {d: len(torch.unique(labels[tuple(line)])) for d, line in lines.items()}
    return frozenset(d for d in runs if counts[d] == max(counts.values()))


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


def _combine_weights(call: Call, operands: list[Labels], shape: torch.Size) -> Labels:
    """Arithmetic on parameters: dimensions that run alike are tied, the others kept side by side."""
    slots: list[Tensor] = []
    for slot in (s.expand(shape) for x in operands for s in x.slots):
        for i, known in enumerate(slots):
            if varying(known) == varying(slot):
                slots[i] = combine(call, known, slot, shape)
                break
        else:
            slots.append(slot)
    return Labels(tuple(slots), weight=True)


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
