"""Rules for operators with weights: what comes in is tied to the weight's input entries, its outputs are born.

Shape legend: O = output channels, I = input channels, N = batch, n/k/m = rows, contracted entries, columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_taylor.graph.channels import Axis, Role
from lightning_taylor.graph.labels import Labels, collapse, compressed, is_constant, pairs, varying
from lightning_taylor.graph.ledger import NEUTRAL
from lightning_taylor.graph.tracer import Call, Rule

__all__ = ["RULES"]


def convolution(call: Call) -> Labels | None:
    """Convolutions of any dimension, plain, depthwise and transposed."""
    weight, x = call.labels("weight"), call.labels("input")
    groups, shape = call.get("groups"), call.get("weight").shape
    transposed = call.get("transposed")
    if weight is None or not weight.weight:
        return _freeze(call, f"the weight is computed from activations ({call.where})")
    if groups == 1:
        dim_in, dim_out = (0, 1) if transposed else (1, 0)
        return _plain_convolution(call, x, weight, dim_in, dim_out)
    inputs = call.get("input").shape[1]
    if groups == inputs and not transposed and shape[0] % groups == 0:
        return _depthwise(call, x, weight)
    return _grouped(call, weight)


def _grouped(call: Call, weight: Labels) -> Labels | None:
    """Frozen, but its outputs still carry their channels: what meets them further on has to stay with them."""
    _freeze(call, f"grouped convolution: {call.get('groups')} groups must keep equal widths ({call.where})")
    own_O = None if call.get("transposed") else _along(weight, 0, call.get("weight").ndim)
    return None if own_O is None else Labels((_spread_along(own_O, 1, call.out.shape),))


def _plain_convolution(call: Call, x: Labels | None, weight: Labels, dim_in: int, dim_out: int) -> Labels | None:
    ndim = call.get("weight").ndim
    reads_I, makes_O = _along(weight, dim_in, ndim), _along(weight, dim_out, ndim)
    _consume(call, x, reads_I, dim=1, shape=call.get("input").shape)
    axes = [*_axes(call, reads_I), *_axes(call, makes_O)]
    call.cost(axes)
    return _produce(call, makes_O, call.labels("bias"), dim=1)


def _depthwise(call: Call, x: Labels | None, weight: Labels) -> Labels | None:
    """One filter (or several) per channel: passes the channel through, and goes with it."""
    ledger = call.tracer.ledger
    own_O = _along(weight, 0, call.get("weight").ndim)
    if x is None or own_O is None:
        return _freeze(call, f"reads a tensor without channels ({call.where})")
    inputs = call.get("input").shape[1]
    multiplier = call.get("weight").shape[0] // inputs
    slot = x.slots[0]
    for i in range(multiplier):
        _tie_along(call, slot, own_O[i::multiplier], dim=1)
    ledger.assign(own_O, Role.PASS_THROUGH)
    bias = call.labels("bias")
    if bias:
        ledger.tie(*pairs(bias.slots[0], own_O))
        ledger.assign(bias.slots[0], Role.PASS_THROUGH)
    call.tracer.name_layer(own_O)
    call.cost(_axes(call, own_O))
    return Labels((_spread_along(own_O, 1, call.out.shape),))


def batch_norm(call: Call) -> list[Labels | None]:
    """Each channel by its own statistics: weight, bias and running statistics go with the channel."""
    x = call.labels("input")
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = [v.slots[0] for name in names if (v := call.labels(name)) is not None]
    for vector_C in vectors:
        if x is None:
            call.tracer.ledger.freeze(vector_C, f"normalises a tensor without channels ({call.where})")
        else:
            _tie_along(call, x.slots[0], vector_C, dim=1)
            call.tracer.ledger.assign(vector_C, Role.PASS_THROUGH)
    return [x]


def normalized_over(call: Call) -> list[Labels | None]:
    """LayerNorm and GroupNorm: exact only while no channel lies in the dimensions that are averaged over."""
    x = call.labels("input")
    if call.name == "native_group_norm":
        dims: tuple[int, ...] = tuple(range(1, call.get("input").ndim))
    else:
        dims = tuple(range(-len(call.get("normalized_shape")), 0))
    if x is not None and not is_constant(x.slots[0], dims):
        reason = f"its statistics run over the channels ({call.where}), so removing one changes the others"
        call.tracer.freeze(x, reason)
    for name in ("weight", "bias"):
        call.tracer.freeze(call.labels(name), f"scales a normalisation over the channels ({call.where})")
    return [x]


def matmul(call: Call) -> Labels | None:
    """``mm``, ``bmm``, ``addmm``, ``baddbmm``: rows n and columns m pass, entries k are contracted."""
    one, other = ("mat1", "mat2") if call.name == "addmm" else ("self", "mat2")
    if call.name in ("baddbmm",):
        one, other = "batch1", "batch2"
    a, b = call.labels(one), call.labels(other)
    in_a, free_a = _split(call, a, contracted=-1, free=-2)
    in_b, free_b = _split(call, b, contracted=-2, free=-1)
    _contract(call, a, in_a, b, in_b)
    out = _free(call, a, free_a, b, free_b)
    call.cost([*(_axes(call, in_a) or _axes(call, in_b)), *_axes(call, free_a), *_axes(call, free_b)])
    if call.name in ("addmm", "baddbmm"):
        bias = call.labels("self")
        if bias is not None:
            out = _add_bias(call, out, bias)
    return Labels((out.expand(call.out.shape),)) if out is not None else None


def _split(call: Call, x: Labels | None, contracted: int, free: int) -> tuple[Tensor | None, Tensor | None]:
    """A matrix operand's labels: those along the contracted dimension, those along the free one."""
    inner = outer = None
    for slot in x.slots if x else ():
        dims = varying(slot) & {contracted, free}
        if dims == {contracted} and inner is None:
            inner = collapse(slot, (free,), keepdim=False)
        elif dims == {free} and outer is None:
            outer = slot
        elif bool((slot != NEUTRAL).any()):
            call.tracer.ledger.freeze(slot, f"mixed with other dimensions by {call.where}")
    return inner, outer


def _contract(call: Call, a: Labels | None, in_a: Tensor | None, b: Labels | None, in_b: Tensor | None) -> None:
    ledger = call.tracer.ledger
    sides = [(x, inner) for x, inner in ((a, in_a), (b, in_b)) if x is not None and inner is not None]
    weights = [inner for x, inner in sides if x.weight]
    if len(sides) == 2 and len(weights) == 1:
        _meet(call, *(inner for _, inner in sides))
        ledger.assign(weights[0], Role.CONSUMER)
        return
    for x, inner in sides:
        if len(sides) == 2:
            reason = f"contracted with another {'parameter' if x.weight else 'activation'} by {call.where}"
        else:
            reason = f"reads a tensor without channels ({call.where})" if x.weight else f"summed over by {call.where}"
        ledger.freeze(inner, reason)


def _meet(call: Call, one: Tensor, other: Tensor) -> None:
    """Tie two label vectors; an entry that meets none on the other side must stay."""
    shape = torch.broadcast_shapes(one.shape, other.shape)
    one, other = one.expand(shape), other.expand(shape)
    call.tracer.ledger.tie(*pairs(one, other))
    for mine, its in ((one, other), (other, one)):
        alone = compressed(mine, its)[compressed(its, mine) == NEUTRAL]
        call.tracer.ledger.freeze(alone, f"reads entries without a channel ({call.where})")


def _free(
    call: Call, a: Labels | None, free_a: Tensor | None, b: Labels | None, free_b: Tensor | None
) -> Tensor | None:
    """What the output carries along its rows or columns; of two, the activation's channels."""
    ledger = call.tracer.ledger
    found = None
    for x, free in sorted(((a, free_a), (b, free_b)), key=lambda side: side[0] is not None and side[0].weight):
        if x is None or free is None:
            continue
        if found is not None:
            ledger.freeze(free, f"its output also carries another tensor's channels ({call.where})")
            continue
        found = free
        if x.weight:
            ledger.assign(free, Role.PRODUCER)
            call.tracer.name_layer(free)
    if found is None:
        return None
    rows = found is free_a
    found = collapse(found, (-1 if rows else -2,), keepdim=True)
    return found.expand(call.out.shape)


def _add_bias(call: Call, out: Tensor | None, bias: Labels) -> Tensor | None:
    ledger = call.tracer.ledger
    slot = bias.slots[0]
    if out is None or not bias.weight:
        ledger.freeze(slot, f"added to a tensor without channels ({call.where})")
        return out
    ledger.tie(*pairs(out, slot.expand(out.shape)))
    ledger.assign(slot, Role.PRODUCER)
    return out


def embedding(call: Call) -> Labels | None:
    """A table of vectors: its columns are born here, its rows stay."""
    weight = call.labels("weight")
    assert weight is not None
    rows, columns = _along(weight, 0, 2), _along(weight, 1, 2)
    if rows is not None:
        call.tracer.ledger.freeze(rows, f"rows of a table ({call.where})")
    return _produce(call, columns, None, dim=call.out.ndim - 1)


def attention(call: Call) -> None:
    """Fused attention: heads and their widths are baked into the kernel's shapes and scale."""
    call.cost(())
    return _freeze(call, f"attention heads must keep equal widths ({call.where})")


def _freeze(call: Call, reason: str) -> None:
    if call.name == "convolution":
        call.cost(())
    for tensor in call.operands:
        labels = call.tracer.labels_of(tensor)
        call.tracer.freeze(labels, reason)
        if labels is not None and labels.weight:
            for slot in labels.slots[:1]:
                call.tracer.name_layer(slot)


def _along(x: Labels, dim: int, ndim: int) -> Tensor | None:
    """A parameter's labels along one of its dimensions, as a vector; None for a dimension of size one."""
    for slot in x.slots:
        if varying(slot) == {dim - ndim}:
            return collapse(slot, tuple(d for d in range(ndim) if d != dim), keepdim=False)
    return None


def _consume(call: Call, x: Labels | None, reads_I: Tensor | None, dim: int, shape: torch.Size) -> None:
    ledger = call.tracer.ledger
    if reads_I is None:
        if x is not None:
            call.tracer.freeze(x, f"the only input channel of {call.where}")
        return
    ledger.assign(reads_I, Role.CONSUMER)
    if x is None:
        ledger.freeze(reads_I, f"reads the network's input ({call.where})")
        return
    _tie_along(call, x.slots[0], reads_I, dim)


def _produce(call: Call, makes_O: Tensor | None, bias: Labels | None, dim: int) -> Labels | None:
    if makes_O is None:
        return None
    ledger = call.tracer.ledger
    ledger.assign(makes_O, Role.PRODUCER)
    call.tracer.name_layer(makes_O)
    if bias is not None:
        ledger.tie(*pairs(bias.slots[0], makes_O))
        ledger.assign(bias.slots[0], Role.PRODUCER)
    return Labels((_spread_along(makes_O, dim, call.out.shape),))


def _tie_along(call: Call, x: Tensor, vector_C: Tensor, dim: int) -> None:
    """Whatever channel lies at index c along ``dim``, at any position, goes with the vector's entry c."""
    along = _spread_along(vector_C, dim, x.shape)
    call.tracer.ledger.tie(*pairs(x, along))
    alone = compressed(along, x)[compressed(x, along) == NEUTRAL]
    call.tracer.ledger.freeze(alone, f"reads entries without a channel ({call.where})")


def _spread_along(vector_C: Tensor, dim: int, shape: torch.Size) -> Tensor:
    view = [1] * len(shape)
    view[dim] = len(vector_C)
    return vector_C.view(view).expand(shape)


def _axes(call: Call, labels: Tensor | None) -> list[Axis]:
    """The one axis that labels run over; none if they come from several, whose widths do not move together."""
    axes = call.tracer.ledger.axes_of(labels) if labels is not None else []
    return axes if len(axes) == 1 else []


RULES: dict[str, Rule] = {
    "convolution": convolution,
    **dict.fromkeys("mm bmm addmm baddbmm".split(), matmul),
    "embedding": embedding,
    **dict.fromkeys(
        """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
        miopen_batch_norm _batch_norm_with_update _batch_norm_no_update""".split(),
        batch_norm,
    ),
    **dict.fromkeys(["native_layer_norm", "native_group_norm"], normalized_over),
    **dict.fromkeys(
        """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        _native_multi_head_attention""".split(),
        attention,
    ),
}
"""Operator name -> rule."""
