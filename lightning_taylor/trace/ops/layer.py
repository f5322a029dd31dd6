"""What the rules for layers with weights share: labels of a parameter, and how they meet an activation's.

Shape legend: O = output channels, I = input channels, C = channels, G = groups of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_taylor.graph.types import Axis, Role
from lightning_taylor.trace.grid_labels import slot_along
from lightning_taylor.trace.labels import Labels, collapse, compressed, pairs, varying
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "along_dim",
    "axes_of",
    "freeze_layer",
    "produce",
    "read_channels",
    "spread_along",
    "tie_along",
    "vector_of",
    "with_batch",
]


def along_dim(x: Labels, dim: int, ndim: int) -> Tensor | None:
    """A parameter's labels along one of its dimensions, as a vector; None for a dimension of size one."""
    for slot in x.slots:
        if varying(slot) == {dim - ndim}:
            return collapse(slot, tuple(d for d in range(ndim) if d != dim), keepdim=False)
    return None


def spread_along(vector_C: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """A vector's labels along one dimension of a shape, repeated along the others."""
    view = [1] * len(shape)
    view[dim] = len(vector_C)
    return vector_C.view(view).expand(shape)


def tie_along(call: Call, x: Tensor, vector_C: Tensor, dim: int) -> None:
    """Whatever channel lies at index c along ``dim``, at any position, goes with the vector's entry c."""
    along = spread_along(vector_C, dim, x.shape)
    call.state.partition.tie(*pairs(x, along))
    alone = compressed(along, x)[compressed(x, along) == NEUTRAL]
    call.state.partition.freeze(alone, Why.READS_HOLES(call.where))


def axes_of(call: Call, labels: Tensor | None) -> list[Axis]:
    """The one axis that labels run over; none if they come from several, whose widths do not move together."""
    axes = call.state.partition.real_axes(labels) if labels is not None else []
    return axes if len(axes) == 1 else []


def vector_of(slot: Tensor, dim: int) -> Tensor:
    """Labels that run along one dimension only, as a vector."""
    return collapse(slot, tuple(d for d in range(slot.ndim) if d != dim), keepdim=False).contiguous()


def produce(call: Call, makes_O: Tensor | None, bias: Labels | None, dim: int) -> Labels | None:
    """The output of a layer: its channels are born here, and its bias goes with them."""
    if makes_O is None:
        return None
    partition = call.state.partition
    partition.assign(makes_O, Role.PRODUCER)
    call.state.name_layer(makes_O)
    if bias is not None:
        partition.tie(*pairs(bias.slots[0], makes_O))
        partition.assign(bias.slots[0], Role.PRODUCER)
    return Labels((spread_along(makes_O, dim, call.out.shape),))


def freeze_layer(call: Call, reason: str) -> None:
    """Freeze all that a layer reads and makes; its name is noted, so that the reason has a place."""
    if call.name == "convolution":
        call.cost(())
    for tensor in call.operands:
        labels = call.state.labels_of(tensor)
        call.state.freeze(labels, reason)
        if labels is not None and labels.weight:
            for slot in labels.slots[:1]:
                call.state.name_layer(slot)


def read_channels(call: Call, x: Labels | None) -> tuple[Labels | None, list[Tensor]]:
    """What a layer's input carries along its channels; and what passes: along its batch (heads, windows), or all of it.

    A tensor that was picked from a grid (queries, of queries, keys and values) carries as a whole which one it is.
    """
    if x is None or len(x.slots) == 1:
        return x, []
    ndim = call.get("input").ndim
    batch = frozenset({-ndim})
    slot = slot_along(call, [s for s in x.slots if varying(s)], 1, ndim, batch)
    return None if slot is None else Labels((slot,)), [s for s in x.slots if not varying(s) or varying(s) == batch]


def with_batch(call: Call, result: Labels | None, batch: list[Tensor]) -> Labels | None:
    """A layer's output, with what its input carried along the batch."""
    inner = tuple(range(1, call.out.ndim))
    kept = tuple(collapse(slot, inner, keepdim=True).expand(call.out.shape) for slot in batch)
    return Labels((*(result.slots if result else ()), *kept)) if result or kept else None
