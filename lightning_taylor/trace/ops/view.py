"""Rules for operators that move elements: the same operator is applied to the labels.

Where code picks or cuts at positions of its own, what it counts is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_taylor.graph.types import Role
from lightning_taylor.trace.constraints.attribute_sizes import SplitSite, site_of
from lightning_taylor.trace.grid_labels import arranged, joined, squeezed
from lightning_taylor.trace.labels import Labels, collapse, is_constant, lies_across, varies, varying
from lightning_taylor.trace.ops.layer import spread_along, vector_of
from lightning_taylor.trace.ops.pointwise import combine, freeze_all
from lightning_taylor.trace.ops.zeros import first_state
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.source_line import running_place
from lightning_taylor.trace.state import Call

__all__ = [
    "move",
    "put",
]

_VIEWS = "view _unsafe_view reshape _reshape_alias".split()

_CUTS = """slice select split split_with_sizes split_copy unsafe_split unsafe_split_with_sizes unsafe_chunk unbind
narrow""".split()


def move(call: Call) -> Labels | Sequence[Labels | None] | None:
    """Apply the operator itself to the labels."""
    operands = [call.state.labels_of(t) for t in call.operands if _is_moved(call, t)]
    indices = [x for t in call.operands if not _is_moved(call, t) and (x := call.state.labels_of(t))]
    if not all(x.weight for x in indices):
        return freeze_all(call, Why.COMPUTED_INDEX(call.where))
    for x in indices:
        call.state.freeze(x, Why.TABLE_OF_INDICES(call.where))
    carried = [x for x in operands if x]
    if not carried:
        return None
    slots = len(carried[0].slots)
    weight = all(x is not None and x.weight for x in operands)
    if weight and all(len(x.slots) == slots for x in carried):
        return _move_weight(call, [[x.slots[i] if x else None for x in operands] for i in range(slots)])
    if any(len(x.slots) > 1 and not x.weight for x in carried):
        return _move_slots(call, operands)
    if call.name == "stack" and all(x is not None and not x.weight for x in operands):
        return Labels((_stacked(call, [x.slots[0] for x in carried]),))
    each = _with_first_states(call, _one_slot_each(call, operands))
    return [Labels(tuple(_arranged(call, each[0], x))) for x in _moved(call, each)]


def _is_moved(call: Call, tensor: Tensor) -> bool:
    """Return whether an argument is what is moved, and no index: the places of maxima are, if nothing else is there."""
    if tensor.is_floating_point() or tensor.is_complex():
        return True
    labels = call.state.labels_of(tensor)
    return labels is not None and not labels.weight and len(call.operands) == 1


def _with_first_states(call: Call, slots: list[Tensor | None]) -> list[Tensor | None]:
    """Zeros beside what a layer reads with them (``cat([x, state], 1)``) have labels of their own."""
    if call.name != "cat":
        return slots
    dim = call.get("dim") % call.out.ndim
    tensors = [t for t in call.operands if _is_moved(call, t)]
    # First what asks for no numbers: a dense block joins thousands of tensors.
    if not any(map(call.state.counting_around, {t.shape[dim] for t in tensors if t.ndim == call.out.ndim})):
        return slots
    if any(slot is not None and not varying(slot) <= {dim - call.out.ndim} for slot in slots):
        return slots
    states = [None if slot is None else first_state(call, t, dim) for t, slot in zip(tensors, slots, strict=True)]
    return [
        slot if state is None else spread_along(state, dim, t.shape)
        for t, slot, state in zip(tensors, slots, states, strict=True)
    ]


def _move_weight(call: Call, slots: Sequence[Sequence[Tensor | None]]) -> Sequence[Labels | None]:
    """Each dimension of parameters on its own; one of which an entry is picked stays, and leaves no trace in it."""
    moved, parts = [], 0
    for together in slots:
        results, before = _moved(call, together), together[0]
        parts = len(results)
        if call.name in _CUTS and before is not None and varying(before) and not any(map(varying, results)):
            call.state.partition.freeze(before, Why.CUT(call.where))
        else:
            moved.append(results)
    return [Labels(tuple(rest), weight=True) for rest in zip(*moved, strict=True)] if moved else [None] * parts


def _stacked(call: Call, slots: Sequence[Tensor]) -> Tensor:
    """Tensors side by side along a new dimension, which has no channels: they must stay as wide as each other."""
    first, *others = slots
    for other in others:
        first = combine(call, first, other, first.shape)
    return first.unsqueeze(call.get("dim")).expand(call.out.shape)


def _move_slots(call: Call, operands: Sequence[Labels | None]) -> Sequence[Labels | None] | None:
    """Each slot on its own; several tensors (``cat``) only if their slots run alike."""
    each = [_by_dimensions(x) if x and not x.weight else None for x in operands]
    first = each[0]
    if first is None or any(x is None or list(map(varying, x)) != list(map(varying, first)) for x in each):
        return freeze_all(call, Why.MIXED(call.where))
    moved = [_moved(call, together) for together in zip(*(x for x in each if x is not None), strict=True)]
    results = []
    for together in zip(*moved, strict=True):
        slots = [part for slot, x in zip(first, together, strict=True) for part in _arranged(call, slot, x)]
        results.append(Labels(tuple(joined(call, slots))) if slots else None)
    return [x if x is None or x.slots else None for x in results]


def _by_dimensions(x: Labels) -> list[Tensor]:
    """A tensor's slots in the order of the dimensions that they run along; which came first tells nothing."""
    return sorted(x.slots, key=lambda slot: sorted(varying(slot)))


def _arranged(call: Call, before: Tensor | None, after: Tensor) -> list[Tensor]:
    if before is None or call.name not in _VIEWS:
        return [after]
    if after.numel() and len(runs := varying(after)) == 1:
        channels = vector_of(after, after.ndim + next(iter(runs)))
        if call.state.partition.are_real(channels):  # else a grid knows what counts them
            _noted(call, channels, [channels])
    return arranged(call, before, after)


def _moved(call: Call, slots: Sequence[Tensor | None]) -> list[Tensor]:
    """The labels after the operator; frozen where it counts positions that would be others after a removal."""
    partition, results = call.state.partition, _apply(call, slots)
    first = slots[0]
    if first is not None and call.name in _CUTS and not lies_across(first, call.get("dim")):
        place = _place(call, first, results)
        if place is None or not place.sure:
            _note_equal_parts(call, first, results)
        for part in results:
            call.state.splits.cut(part, first, Why.CUT(call.where), place)
    if first is not None and any(varies(first, d) for d in _reordered(call)):
        partition.freeze(first, Why.PICKED(call.where))
    return results


def _place(call: Call, whole: Tensor, parts: Sequence[Tensor]) -> SplitSite | None:
    """The place where channels are taken apart, if an attribute of the running module may say how."""
    runs = varying(whole)
    if len(runs) != 1 or any(part.ndim != whole.ndim or not part.numel() for part in parts):
        return None
    dim = whole.ndim + next(iter(runs))
    whole_C, parts_P = vector_of(whole, dim), [vector_of(part, dim) for part in parts]
    if call.name == "slice":
        start, size = int(call.get("start") or 0), len(parts_P[0])
        before = max(0, start + len(whole_C)) if start < 0 else min(start, len(whole_C))
        if int(call.get("step")) != 1 or size == len(whole_C):
            return None
        parts_P = [part for part in whole_C.split([before, size, len(whole_C) - before - size]) if len(part)]
    if sum(map(len, parts_P)) != len(whole_C):
        return None
    return _noted(call, whole_C, parts_P)


def _noted(call: Call, whole_C: Tensor, parts_P: Sequence[Tensor]) -> SplitSite | None:
    state = call.state
    kind = (state.kind, call.name, running_place())
    found = site_of(state.module, kind, whole_C, parts_P, state.held())
    return state.splits.note(found) if found else None


def _note_equal_parts(call: Call, whole: Tensor, parts: Sequence[Tensor]) -> None:
    """A chunk into equal parts stays one if the same entries of each part go."""
    dims = varying(whole)
    if len(parts) < 2 or len(dims) != 1 or {part.ndim for part in parts} != {whole.ndim}:
        return
    (dim,) = dims
    if any(varies(part, dim) for part in parts) and parts[0].shape[dim] * len(parts) == whole.shape[dim]:
        rows = torch.stack([squeezed(part, [dim]) for part in parts])
        if not bool((rows == NEUTRAL).any()):
            call.state.grids.split(rows, call.where, (call.state.kind, "chunk"), [1], only_if_uneven=True)


def _reordered(call: Call) -> list[int]:
    """The dimensions along which an operator picks or shifts entries by their numbers."""
    if call.name == "index":
        return [d for d, index in enumerate(call.get("indices")) if index is not None]
    if call.name == "roll":
        dims = call.get("dims")
        return list(dims) if dims else list(range(call.operands[0].ndim))
    return [call.get("dim")] if call.name in ("index_select", "gather") else []


def _apply(call: Call, slots: Sequence[Tensor | None]) -> list[Tensor]:
    """The operator on label tensors in place of its floating-point arguments."""
    neutral = torch.full((), NEUTRAL, dtype=torch.int64)
    repeated = _repeated(call, slots)

    def once(labels: Tensor) -> Tensor:
        for d in repeated:
            labels = labels.narrow(d, 0, 1)
        return labels

    def run(convert: Callable[[Tensor], Tensor]) -> Any:
        supply = iter(slots)

        def swap(value: Any) -> Any:
            if not isinstance(value, Tensor) or not _is_moved(call, value):
                return value
            slot = next(supply)
            return convert(neutral.expand(value.shape) if slot is None else slot)

        args, kwargs = tree_map(swap, (call.args, call.kwargs))
        kwargs.pop("memory_format", None)
        return call.func(*args, **kwargs)

    try:
        out = run(once)
        if repeated:
            out = out.expand(call.out.shape)
    except (RuntimeError, NotImplementedError):
        # An expanded tensor has no such view, or the kernel knows no integers: doubles hold labels exactly.
        out = run(lambda labels: labels.contiguous().double())
    return [t.long() for t in ([out] if isinstance(out, Tensor) else out)]


def _repeated(call: Call, slots: Sequence[Tensor | None]) -> list[int]:
    """Return the dimensions along which all that is joined repeats itself: so does the whole.

    To write the labels out for every position would make each layer of a dense block as slow as all before it.
    """
    if call.name != "cat" or any(slot is not None and slot.ndim != call.out.ndim for slot in slots):
        return []
    across = [d for d in range(call.out.ndim) if d != call.get("dim") % call.out.ndim and call.out.shape[d] > 1]
    return [d for d in across if all(slot is None or slot.stride(d) == 0 for slot in slots)]


def _one_slot_each(call: Call, operands: Sequence[Labels | None]) -> list[Tensor | None]:
    """Activations have one slot; of a parameter's, the one that varies as the activations do, the rest frozen."""
    weighed = any(x is not None and x.weight for x in operands)
    along = frozenset().union(*(varying(x.slots[0]) for x in operands if weighed and x and not x.weight))
    chosen: list[Tensor | None] = []
    for x in operands:
        pick = None
        for slot in x.slots if x else ():
            if pick is None and (x is None or not x.weight or varying(slot) & along):
                pick = slot
                if x is not None and x.weight:
                    call.state.partition.assign(slot, Role.PASS_THROUGH)
            else:
                call.state.partition.freeze(slot, Why.BARE_PARAMETER(call.where))
        chosen.append(pick)
    return chosen


def put(call: Call) -> Labels | None:
    """``table[rows] = values``: every row of a table is as wide as what is written into any of them."""
    table, values, rows = call.get("self"), call.get("values"), call.get("indices")
    carried = [x for x in (call.state.labels_of(table), call.state.labels_of(values)) if x is not None]
    # Values may lack leading dimensions, by broadcasting.
    slots = [x.slots[0][(None,) * (table.ndim - x.slots[0].ndim)] for x in carried]
    # One index tensor without None before it counts rows; a mask or several of them index other dimensions too.
    plain = len(rows) == 1 and rows[0] is not None and rows[0].ndim == 1 and not call.state.labels_of(rows[0])
    if not plain or any(x.weight for x in carried) or not all(is_constant(slot, (0,)) for slot in slots):
        return freeze_all(call, Why.WRITTEN_BY_INDEX(call.where))
    wide = [collapse(slot, (0,), keepdim=True).expand(table.shape) for slot in slots if len(slot)]
    return Labels((wide[0] if len(wide) == 1 else combine(call, wide[0], wide[1], table.shape),)) if wide else None
