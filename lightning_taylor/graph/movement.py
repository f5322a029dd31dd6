"""Rules for operators that move, combine or reduce elements without weights.

Moving needs no rule of its own: the same operator is applied to the labels. Pointwise operators tie the labels of
their operands. What reduces or normalises along the channels freezes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_taylor.graph.channels import Role
from lightning_taylor.graph.labels import Labels, collapse, compressed, is_constant, pairs, varies, varying
from lightning_taylor.graph.ledger import NEUTRAL
from lightning_taylor.graph.tracer import Call, Rule

__all__ = ["RULES", "combine", "fallback", "freeze_all"]


def move(call: Call) -> Labels | Sequence[Labels | None] | None:
    """Apply the operator itself to the labels."""
    operands = [call.tracer.labels_of(t) for t in call.operands if t.is_floating_point()]
    indices = [t for t in call.operands if not t.is_floating_point() and call.tracer.labels_of(t)]
    if indices:
        return freeze_all(call, f"indexed by a computed tensor ({call.where})")
    carried = [x for x in operands if x]
    slots = len(carried[0].slots)
    weight = all(x is not None and x.weight for x in operands)
    if weight and all(len(x.slots) == slots for x in carried):
        moved = [_moved(call, [x.slots[i] if x else None for x in operands]) for i in range(slots)]
        return [Labels(tuple(together), weight=True) for together in zip(*moved, strict=True)]
    return [Labels((x,)) for x in _moved(call, _one_slot_each(call, operands))]


def _moved(call: Call, slots: Sequence[Tensor | None]) -> list[Tensor]:
    """The labels after the operator; frozen where it counts positions that would be others after a removal."""
    ledger, results = call.tracer.ledger, _apply(call, slots)
    first = slots[0]
    if first is not None and call.name in _CUTS:
        for part in results:
            ledger.cut(part, first, f"taken apart at fixed positions by {call.where}")
    if first is not None and any(varies(first, d) for d in _reordered(call)):
        ledger.freeze(first, f"picked or reordered at fixed positions by {call.where}")
    return results


def _reordered(call: Call) -> list[int]:
    """The dimensions along which an operator picks or shifts entries by their numbers."""
    if call.name == "index":
        return [d for d, index in enumerate(call.get("indices")) if index is not None]
    if call.name == "roll":
        dims = call.get("dims")
        return list(dims) if dims else list(range(call.operands[0].ndim))
    return [call.get("dim")] if call.name in ("index_select", "gather") else []


def pointwise(call: Call) -> Labels | None:
    """Tie what the operands carry at the same place."""
    shape = next(t.shape for t in _outputs(call))
    operands = [x for t in call.operands if (x := call.tracer.labels_of(t)) is not None]
    neutral = [t for t in call.operands if call.tracer.labels_of(t) is None]
    operands = _without_fixed_slots(call, operands, neutral)
    if not operands:
        return None
    if all(x.weight for x in operands):
        return _combine_weights(call, operands, shape)
    result: Tensor | None = None
    for x in sorted(operands, key=lambda x: x.weight):
        slot = x.slots[0] if not x.weight else _matching_slot(call, x, result, shape)
        if slot is not None:
            result = slot if result is None else combine(call, result, slot, shape)
    return None if result is None else Labels((result.expand(shape),))


def keep_extent(call: Call) -> Labels | None:
    """The output has the extent of the first argument and nothing else of it (``zeros_like``)."""
    labels = call.tracer.labels_of(call.operands[0])
    return Labels(labels.slots[:1]) if labels and not labels.weight else None


def per_map(call: Call) -> Labels | None:
    """Pooling, resizing, spatial padding: each feature map on its own, over the trailing dimensions."""
    out = next(_outputs(call))
    found = re.search(r"([123])d", call.name)
    spatial = tuple(range(-int(found.group(1)), 0)) if found else tuple(range(-(out.ndim - 2), 0))
    return _over(call, spatial, out.shape)


def pad(call: Call) -> Labels | Sequence[Labels | None] | None:
    """Constant padding: of positions, neutral; of channels, entries that stand for nothing."""
    labels = call.tracer.labels_of(call.operands[0])
    assert labels is not None
    amounts = call.get("pad")
    padded = {-1 - i // 2 for i, amount in enumerate(amounts) if amount}
    if len(labels.slots) != 1:
        return freeze_all(call, f"a padded parameter ({call.where})")
    slot = labels.slots[0]
    if varying(slot) & padded:
        return Labels((torch.ops.aten.constant_pad_nd(slot.contiguous(), amounts, NEUTRAL),))
    for dim in padded:
        slot = slot.narrow(dim, 0, 1)
    return Labels((slot.expand(call.out.shape),), labels.weight)


def reduce(call: Call) -> Labels | Sequence[Labels | None] | None:
    """Mean, sum, norm, max over dimensions: passes channels that are not reduced over."""
    out = next(_outputs(call))
    labels = call.tracer.labels_of(call.operands[0])
    assert labels is not None
    ndim = call.operands[0].ndim
    dim = call.get("dim")
    dims = tuple(range(ndim)) if dim is None or dim == [] else (dim,) if isinstance(dim, int) else tuple(dim)
    kept = []
    for slot in labels.slots:
        if is_constant(slot, dims):
            kept.append(collapse(slot, dims, keepdim=out.ndim == ndim))
        else:
            call.tracer.ledger.freeze(slot, f"reduced over the channels by {call.where}")
    result = Labels(tuple(kept), labels.weight) if kept else None
    return [result] * len(list(_outputs(call)))


def along(call: Call) -> Labels | Sequence[Labels | None] | None:
    """Softmax, cumulative sums, sorting: free across the given dimension, frozen along it."""
    labels = call.tracer.labels_of(call.operands[0])
    assert labels is not None
    dim = call.get("dim")
    outputs = list(_outputs(call))
    if any(not is_constant(slot, (-1 if dim is None else dim,)) for slot in labels.slots):
        return freeze_all(call, f"normalised or ordered along the channels by {call.where}")
    slot = collapse(labels.slots[0], (-1 if dim is None else dim,), keepdim=True)
    return [Labels((slot.expand(out.shape),)) for out in outputs]


def glu(call: Call) -> Labels | None:
    """Two halves along a dimension, one gating the other: they go together."""
    labels = call.tracer.labels_of(call.operands[0])
    assert labels is not None
    one, other = labels.slots[0].chunk(2, dim=call.get("dim"))
    return Labels((combine(call, one, other, one.shape),))


def _over(call: Call, dims: tuple[int, ...], shape: torch.Size) -> Labels | None:
    labels = call.tracer.labels_of(call.operands[0])
    if labels is None or len(labels.slots) != 1 or not is_constant(labels.slots[0], dims):
        freeze_all(call, f"channels lie along the positions that {call.where} works over")
        return None
    return Labels((collapse(labels.slots[0], dims, keepdim=True).expand(shape),))


def freeze_all(call: Call, reason: str) -> None:
    """Freeze what any argument carries."""
    for tensor in call.operands:
        call.tracer.freeze(call.tracer.labels_of(tensor), reason)


def _outputs(call: Call) -> Any:
    return iter([call.out] if isinstance(call.out, Tensor) else [t for t in call.out if isinstance(t, Tensor)])


def _apply(call: Call, slots: Sequence[Tensor | None]) -> list[Tensor]:
    """The operator on label tensors in place of its floating-point arguments."""
    neutral = torch.full((), NEUTRAL, dtype=torch.int64)

    def run(convert: Callable[[Tensor], Tensor]) -> Any:
        supply = iter(slots)

        def swap(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            slot = next(supply)
            return convert(neutral.expand(value.shape) if slot is None else slot)

        args, kwargs = tree_map(swap, (call.args, call.kwargs))
        kwargs.pop("memory_format", None)
        return call.func(*args, **kwargs)

    try:
        out = run(lambda labels: labels)
    except (RuntimeError, NotImplementedError):
        # An expanded tensor has no such view, or the kernel knows no integers: doubles hold labels exactly.
        out = run(lambda labels: labels.contiguous().double())
    return [t.long() for t in ([out] if isinstance(out, Tensor) else out)]


def _one_slot_each(call: Call, operands: Sequence[Labels | None]) -> list[Tensor | None]:
    """Activations have one slot; of a parameter's, the one that varies as the activations do, the rest frozen."""
    along = frozenset().union(*(varying(x.slots[0]) for x in operands if x and not x.weight))
    chosen: list[Tensor | None] = []
    for x in operands:
        pick = None
        for slot in x.slots if x else ():
            if pick is None and (x is None or not x.weight or varying(slot) & along):
                pick = slot
                if x is not None and x.weight:
                    call.tracer.ledger.assign(slot, Role.PASS_THROUGH)
            else:
                call.tracer.ledger.freeze(slot, f"a bare parameter's positions ({call.where})")
        chosen.append(pick)
    return chosen


def _matching_slot(call: Call, x: Labels, result: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Of a bare parameter's dimensions, the one that runs along the activation's channels."""
    along = varying(result.expand(shape)) if result is not None else frozenset()
    found = None
    for slot in x.slots:
        if found is None and varying(slot) & along:
            found = slot
            call.tracer.ledger.assign(slot, Role.PASS_THROUGH)
        else:
            call.tracer.ledger.freeze(slot, f"a bare parameter's positions ({call.where})")
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
                    call.tracer.ledger.freeze(s, f"beside a tensor without channels ({call.where})")
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
    ledger = call.tracer.ledger
    a, b = one.expand(shape), other.expand(shape)
    # An operand that is spread over the other's channels (an attention map over all of them) belongs to none.
    if _spread(one, shape) & varying(b):
        ledger.freeze(one, f"spread over the channels of another tensor by {call.where}")
        return b
    if _spread(other, shape) & varying(a):
        ledger.freeze(other, f"spread over the channels of another tensor by {call.where}")
        return a
    ledger.tie(*pairs(a, b))
    if torch.equal(compressed(a, b), compressed(b, a)):
        return a
    small_a, small_b = compressed(a, b), compressed(b, a)
    for mine, its in ((small_a, small_b), (small_b, small_a)):
        hole = mine == NEUTRAL
        if bool(hole.any()) and not bool(hole.all()):
            ledger.freeze(its[hole], f"meets padding of a fixed width in {call.where}")
    return torch.where(small_a == NEUTRAL, small_b, small_a).expand(shape)


def _spread(labels: Tensor, shape: torch.Size) -> frozenset[int]:
    """The dimensions, from the end, along which broadcasting repeats a tensor; none if it carries nothing."""
    grown = frozenset(d for d in range(-len(shape), 0) if shape[d] > 1 and (-d > labels.ndim or labels.shape[d] == 1))
    return grown if grown and bool((compressed(labels) != NEUTRAL).any()) else frozenset()


_MOVES = """view _unsafe_view reshape _reshape_alias permute transpose t numpy_T expand unsqueeze squeeze slice select
split split_with_sizes split_copy unbind cat stack flip roll repeat detach alias as_strided unfold im2col
pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle index index_select gather narrow diagonal movedim
lift_fresh lift rot90 tril triu select_scatter slice_scatter repeat_interleave""".split()
_CUTS = "slice select split split_with_sizes split_copy unbind narrow".split()
_POINTWISE = """hardswish hardtanh hardsigmoid _prelu_kernel prelu clone copy _to_copy where masked_fill fill zero
contiguous leaky_relu relu6 dropout native_dropout rrelu_with_noise_functional threshold celu selu mish""".split()
_LIKE = "zeros_like ones_like empty_like full_like rand_like randn_like bernoulli".split()
_PER_MAP = """max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
_upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
replication_pad2d replication_pad3d mkldnn_max_pool2d mkldnn_max_pool3d quantized_max_pool2d""".split()
_REDUCE = """mean sum amax amin prod var std var_mean std_mean logsumexp any all norm linalg_vector_norm max min argmax
argmin median nansum nanmean count_nonzero""".split()
_ALONG = "_softmax _log_softmax softmax log_softmax cumsum cumprod logcumsumexp sort topk".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, move),
    **dict.fromkeys(_POINTWISE, pointwise),
    **dict.fromkeys(_LIKE, keep_extent),
    **dict.fromkeys(_PER_MAP, per_map),
    **dict.fromkeys(_REDUCE, reduce),
    **dict.fromkeys(_ALONG, along),
    "constant_pad_nd": pad,
    "glu": glu,
}
"""Operator name -> rule."""


def fallback(func: Any) -> Rule | None:
    """The rule of an operator that has no row: torch's own tags say whether it is pointwise or a view."""
    if torch.Tag.pointwise in func.tags:
        return pointwise
    return move if func.is_view else None
