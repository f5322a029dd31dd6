"""Rules for matrix products and attention: rows and columns pass, contracted entries meet.

Shape legend: O = output channels, I = input channels, n/k/m = rows, contracted entries, columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_taylor.graph.types import Role
from lightning_taylor.trace.labels import Labels, collapse, compressed, pairs, united, varying
from lightning_taylor.trace.ops.layer import along_dim, axes_of, produce
from lightning_taylor.trace.ops.pointwise import combine_weights
from lightning_taylor.trace.ops.query_key import contracted
from lightning_taylor.trace.ops.zeros import are_zeros
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "embedding",
    "matmul",
]


def matmul(call: Call) -> Labels | None:
    """``mm``, ``bmm``, ``addmm``, ``baddbmm``: rows n and columns m pass, entries k are contracted."""
    one, other = ("mat1", "mat2") if call.name == "addmm" else ("self", "mat2")
    if call.name in ("baddbmm",):
        one, other = "batch1", "batch2"
    if (product := _product(call, call.labels(one), call.labels(other))) is not None:
        return product
    a, b = _without_constant(call, call.labels(one), call.labels(other))
    in_a, free_a, batch_a = _split(call, a, contracted=-1, free=-2)
    in_b, free_b, batch_b = _split(call, b, contracted=-2, free=-1)
    silent = [are_zeros(call, call.get(name)) for name in (one, other)]
    _contract(call, a, in_a, b, in_b, silent=any(silent))
    out = _free(call, a, free_a, b, free_b)
    batch = same_batch(call, batch_a, batch_b, first=free_a is not None and free_b is None)
    made = [*(axes_of(call, in_a) or axes_of(call, in_b)), *axes_of(call, free_a), *axes_of(call, free_b)]
    # The axis behind a width is that of all heads: those in the batch are counted by it.
    call.cost(made or [axis for slot in batch for axis in axes_of(call, slot)])
    if call.name in ("addmm", "baddbmm"):
        bias = call.labels("self")
        if bias is not None:
            out = _add_bias(call, out, bias)
    slots = [out.expand(call.out.shape)] if out is not None else []
    slots += [collapse(x, (-1, -2), keepdim=True).expand(call.out.shape) for x in batch]
    slots += fixed(a if free_a is not None and free_b is None else b, call.out.shape) if slots else []
    return Labels(tuple(slots)) if slots else None


def _product(call: Call, a: Labels | None, b: Labels | None) -> Labels | None:
    """A product of two parameters that is a parameter itself (a low-rank update): rows of one, columns of the other."""
    if a is None or b is None or not (a.weight and b.weight) or _reads_data(call, a, b):
        return None
    in_a, rows, _ = _split(call, a, contracted=-1, free=-2)
    in_b, columns, _ = _split(call, b, contracted=-2, free=-1)
    for inner in (in_a, in_b):
        if inner is not None:
            call.state.partition.freeze(inner, Why.RANK(call.where))
    call.cost([*axes_of(call, rows), *axes_of(call, columns)])
    slots = [
        collapse(x, (d,), keepdim=True).expand(call.out.shape) for x, d in ((rows, -1), (columns, -2)) if x is not None
    ]
    made, bias = Labels(tuple(slots), weight=True), call.labels("self") if call.name in ("addmm", "baddbmm") else None
    if bias is not None and not bias.weight:
        call.state.freeze(bias, Why.ADDED_TO_PRODUCT(call.where))
    return combine_weights(call, [bias, made], call.out.shape) if bias is not None and bias.weight else made


def _reads_data(call: Call, a: Labels, b: Labels) -> bool:
    """Whether a layer reads a parameter (a learnt query, a buffer) as it reads activations, by a weight of its own."""
    partition, running = call.state.partition, call.state.module.partition(".parametrizations")[0]
    owners = [
        {
            axis[0].rpartition(".")[0].partition(".parametrizations")[0]
            for slot in x.slots
            for axis in partition.axes_of(slot)
        }
        for x in (a, b)
    ]
    constant = any(all(partition.is_buffer(slot) for slot in x.slots) for x in (a, b))
    return constant or (owners[1] == {running} and running not in owners[0])


def _without_constant(call: Call, a: Labels | None, b: Labels | None) -> tuple[Labels | None, Labels | None]:
    """Of two parameters, the first is data that a layer reads (a learnt query); of a buffer nothing can go."""
    if a is None or b is None or not (a.weight and b.weight):
        return a, b
    partition = call.state.partition
    constant = [all(partition.is_buffer(slot) for slot in x.slots) for x in (a, b)]
    if any(constant):
        call.state.freeze(a if constant[0] else b, Why.TABLE(call.where))
        return (None, b) if constant[0] else (a, None)
    read = []
    for slot in a.slots:
        if varying(slot) == {-1} and not read:
            read.append(slot)
            partition.assign(slot, Role.PASS_THROUGH)
        else:
            partition.freeze(slot, Why.PARAMETER_POSITIONS(call.where))
    return (Labels(tuple(read)) if read else None), b


def _split(
    call: Call, x: Labels | None, contracted: int, free: int
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """An operand's labels: those along the contracted dimension, those along the free one, those along the batch."""
    inner = outer = None
    batch = []
    for slot in x.slots if x else ():
        dims = varying(slot) & {contracted, free}
        if dims == {contracted} and inner is None:
            inner = collapse(slot, (free,), keepdim=False)
        elif dims == {free} and outer is None:
            outer = slot
        elif x is not None and not x.weight and varying(slot) == {contracted, free} and inner is None and batch == []:
            inner = united(call.state.partition, slot, contracted)
            if inner is None:
                call.state.partition.freeze(slot, Why.READS_HOLES(call.where))
        elif x is not None and not x.weight and varying(slot) and not dims:
            batch.append(slot)
        elif bool((slot != NEUTRAL).any()):
            call.state.partition.freeze(slot, Why.MIXED_DIMENSIONS(call.where))
    return inner, outer, batch


def fixed(x: Labels | None, shape: torch.Size) -> list[Tensor]:
    """The slots of a tensor that was picked from a grid at one index: which one it was."""
    if x is None or x.weight or len(x.slots) < 2:
        return []
    return [slot.flatten()[0].expand(shape) for slot in x.slots if not varying(slot)]


def same_batch(call: Call, a: list[Tensor], b: list[Tensor], *, first: bool) -> list[Tensor]:
    """Tie what runs along the batch (heads) on both sides; what does so on one side only has to stay."""
    kept = []
    for one in a:
        other = next((x for x in b if varying(x) & varying(one)), None)
        if other is not None:
            meet(call, collapse(one, (-1, -2), keepdim=True), collapse(other, (-1, -2), keepdim=True))
            # What is read on must be of the same grid as the rest of its tensor.
            kept.append(one if first else other)
    met = frozenset().union(*(varying(x) for x in kept))
    for x in (*a, *b):
        if not varying(x) & met:
            call.state.partition.freeze(x, Why.BATCH(call.where))
    return kept


def _contract(
    call: Call, a: Labels | None, in_a: Tensor | None, b: Labels | None, in_b: Tensor | None, *, silent: bool
) -> None:
    partition = call.state.partition
    sides = [(x, inner) for x, inner in ((a, in_a), (b, in_b)) if x is not None and inner is not None]
    weights = [inner for x, inner in sides if x.weight]
    if len(sides) == 2 and len(weights) == 1:
        meet(call, *(inner for _, inner in sides))
        partition.assign(weights[0], Role.CONSUMER)
        return
    if len(sides) == 2 and not weights and contracted(call, sides):
        meet(call, *(inner for _, inner in sides))
        return
    for x, inner in sides:
        if x.weight and silent:  # as wide as the channels that come later; what the module makes follows its attributes
            partition.assign(inner, Role.CONSUMER)
            continue
        if len(sides) == 2:
            reason = (Why.CONTRACTED_PARAMETER if x.weight else Why.CONTRACTED)(call.where)
        else:
            reason = Why.READS_NO_CHANNELS(call.where) if x.weight else Why.SUMMED(call.where)
        partition.freeze(inner, reason)


def meet(call: Call, one: Tensor, other: Tensor) -> None:
    """Tie two label vectors; an entry that meets none on the other side must stay."""
    shape = torch.broadcast_shapes(one.shape, other.shape)
    one, other = one.expand(shape), other.expand(shape)
    call.state.partition.tie(*pairs(one, other))
    for mine, its in ((one, other), (other, one)):
        alone = compressed(mine, its)[compressed(its, mine) == NEUTRAL]
        call.state.partition.freeze(alone, Why.READS_HOLES(call.where))


def _free(
    call: Call, a: Labels | None, free_a: Tensor | None, b: Labels | None, free_b: Tensor | None
) -> Tensor | None:
    """What the output carries along its rows or columns; of two, the activation's channels."""
    partition = call.state.partition
    found = None
    for x, free in sorted(((a, free_a), (b, free_b)), key=lambda side: side[0] is not None and side[0].weight):
        if x is None or free is None:
            continue
        if found is not None:
            partition.freeze(free, Why.OTHER_CHANNELS(call.where))
            continue
        found = free
        if x.weight:
            partition.assign(free, Role.PRODUCER)
            call.state.name_layer(free)
    if found is None:
        return None
    rows = found is free_a
    found = collapse(found, (-1 if rows else -2,), keepdim=True)
    return found.expand(call.out.shape)


def _add_bias(call: Call, out: Tensor | None, bias: Labels) -> Tensor | None:
    partition = call.state.partition
    slot = bias.slots[0]
    if out is None or not bias.weight:
        partition.freeze(slot, Why.ADDED_WITHOUT_CHANNELS(call.where))
        return out
    partition.tie(*pairs(out, slot.expand(out.shape)))
    partition.assign(slot, Role.PRODUCER)
    return out


def embedding(call: Call) -> Labels | None:
    """A table of vectors: its columns are born here, its rows stay."""
    weight = call.labels("weight")
    assert weight is not None
    rows, columns = along_dim(weight, 0, 2), along_dim(weight, 1, 2)
    if rows is not None:
        call.state.partition.freeze(rows, Why.TABLE_ROWS(call.where))
    return produce(call, columns, None, dim=call.out.ndim - 1)
