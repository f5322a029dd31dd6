"""Rules for matrix products and attention: rows and columns pass, contracted entries meet.

Shape legend: O = output channels, I = input channels, n/k/m = rows, contracted entries, columns.
"""

from __future__ import annotations

from torch import Tensor

from lightning_taylor.trace.labels import Labels, collapse, varying
from lightning_taylor.trace.ops.layer import axes_of, vector_of
from lightning_taylor.trace.ops.matmul import fixed, meet, same_batch
from lightning_taylor.trace.ops.query_key import contracted, keeps_scale
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "attention",
]


def attention(call: Call) -> list[Labels | None]:
    """Fused attention: heads pass, the width of queries and keys is baked into the scale, that of values passes."""
    given = [call.labels(name) for name in ("query", "key", "value")]
    mask = call.labels("attn_mask") or call.labels("attn_bias")
    coordinates = _coordinates(call, given[:2])
    for x, name in ((given[0], "query"), (given[1], "key"), (mask, "mask")):
        for slot in x.slots if x else ():
            inside = varying(slot) & {-1, -2} or not varying(slot)
            if inside and all(slot is not other for other in coordinates):
                call.state.partition.freeze(slot, Why.ATTENTION_WIDTH(call.where, name=name))
    values, width = [], []
    for slot in given[2].slots if given[2] else ():
        (width if varying(slot) == {-1} else values).append(slot)
    heads = [slot for slot in (given[0].slots if given[0] else ()) if varying(slot) and not varying(slot) & {-1, -2}]
    for x in (given[1], mask):
        other = [slot for slot in (x.slots if x else ()) if varying(slot) and not varying(slot) & {-1, -2}]
        if other or x is not mask:
            heads = same_batch(call, heads, other, first=True)
    heads = same_batch(call, heads, [slot for slot in values if not varying(slot) & {-1, -2}], first=False)
    # Queries with keys, then weights with values: what each loses may differ.
    whole = [axis for slot in heads for axis in axes_of(call, slot)]
    made = [axis for slot in coordinates[:1] for axis in axes_of(call, slot)] or whole
    first = call.get("query").shape[-1] / (call.get("query").shape[-1] + call.get("value").shape[-1])
    call.cost(made, first)
    call.cost([axis for slot in width for axis in axes_of(call, slot)] or whole, 1 - first)
    slots = [collapse(slot, (-2,), keepdim=True).expand(call.out[0].shape) for slot in width]
    slots += [collapse(slot, (-1, -2), keepdim=True).expand(call.out[0].shape) for slot in heads]
    slots += fixed(given[2], call.out[0].shape) if slots else []
    return [Labels(tuple(slots)) if slots else None]


def _coordinates(call: Call, given: list[Labels | None]) -> list[Tensor]:
    """The labels along the width of queries and keys, tied, if they may go; none otherwise."""
    sides = [(x, slot) for x in given if x is not None for slot in x.slots if varying(slot) == {-1}]
    if len(sides) != 2 or sides[0][0] is sides[1][0] or not keeps_scale(call):
        return []
    vectors = [(x, vector_of(slot, slot.ndim - 1)) for x, slot in sides]
    if not contracted(call, vectors):
        return []
    meet(call, *(vector for _, vector in vectors))
    return [slot for _, slot in sides]
