"""Activations that carry channels along several dimensions: one slot of labels per dimension of a grid.

Shape legend: as the tensors that the labels describe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_taylor.trace.constraints.attribute_sizes import names_width
from lightning_taylor.trace.constraints.grids import MERGED, Grid
from lightning_taylor.trace.labels import compressed, varying
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "arranged",
    "entries_of",
    "joined",
    "slot_along",
    "squeezed",
]


def arranged(call: Call, before: Tensor, after: Tensor) -> list[Tensor]:
    """Return the slots of a tensor whose channels a view has split into several dimensions; one if it has not."""
    dims = sorted(varying(after))
    if len(varying(before)) != 1 or len(dims) < 2:
        return [after]
    grid_F = squeezed(after, dims)
    if bool((grid_F == NEUTRAL).any()) or len(torch.unique(grid_F)) != grid_F.numel():
        return [after]
    state = call.state
    nested = state.grids.owning(int(grid_F.max())) is not None
    kind = (state.kind, call.name, len(dims), nested)
    grid = state.grids.split(grid_F, call.where, kind, _order(call, grid_F))
    _note_size_attributes(call, grid)
    return [
        torch.from_numpy(axis).view([-1 if d - after.ndim == dim else 1 for d in range(after.ndim)]).expand(after.shape)
        for dim, axis in zip(dims, grid.axes, strict=True)
        if axis is not None
    ]


def joined(call: Call, slots: Sequence[Tensor]) -> list[Tensor]:
    """Slots that a view has brought into one dimension, as the labels of the grid that they come from."""
    left = list(slots)
    while (clash := _clash(left)) is not None:
        grid = _grid_of(call, left[clash[0]])
        each = [_slot_of(call, grid, dim, left) for dim in range(grid.labels.ndim)] if grid else [None]
        if grid is None or any(slot is None for slot in each):
            for i in reversed(clash):
                call.state.partition.freeze(left.pop(i), Why.MIXED(call.where))
            continue
        of_grid = [slot for slot in each if slot is not None]
        left = [slot for slot in left if all(slot is not other for other in of_grid)]
        left.append(_entries(grid, of_grid))
        merged = math.prod(len(torch.unique(slot)) for slot in of_grid)
        for attribute in call.state.counting(merged):
            grid.size_attributes[*attribute, (MERGED,)] = merged
    return left


def entries_of(call: Call, slots: Sequence[Tensor]) -> Tensor | None:
    """The entries of tensors that the slots of an activation spell together; None if they spell none, or several."""
    left = [slot for slot in slots if bool((slot != NEUTRAL).any())]
    while len(left) > 1:
        for grid in filter(None, (_grid_of(call, slot) for slot in left)):  # of grids of grids, the inner one is whole
            each = [_slot_of(call, grid, dim, left) for dim in range(grid.labels.ndim)]
            if all(slot is not None for slot in each):
                break
        else:
            return None
        of_grid = [slot for slot in each if slot is not None]
        left = [*(slot for slot in left if all(slot is not other for other in of_grid)), _entries(grid, of_grid)]
    return compressed(left[0]) if left else None


def slot_along(call: Call, slots: Sequence[Tensor], dim: int, ndim: int, passing: frozenset[int]) -> Tensor | None:
    """The slot that runs along a dimension; the others are frozen unless they run along ``passing`` ones only."""
    chosen = None
    for slot in slots:
        runs = varying(slot)
        if chosen is None and (dim % ndim) - ndim in runs:
            chosen = slot
        elif not runs or not runs <= passing:
            call.state.partition.freeze(slot, Why.MIXED(call.where))
    return chosen


def _order(call: Call, grid_F: Tensor) -> list[int]:
    """The dimensions as units, the likeliest first: those that an attribute of the module counts, then the last."""
    counted = [d for d, n in enumerate(grid_F.shape) if call.state.counting(n) and d < grid_F.ndim - 1]
    return [*counted, *(d for d in reversed(range(grid_F.ndim)) if d not in counted)]


def _note_size_attributes(call: Call, grid: Grid) -> None:
    shape = grid.labels.shape
    for n in dict.fromkeys(shape):
        alike = [d for d, m in enumerate(shape) if m == n]
        for found, noted in (
            (call.state.counting(n), grid.size_attributes),
            (call.state.counting_inside(n), grid.inside),
        ):
            for module, attribute in found:
                noted[module, attribute, tuple(reversed(alike) if names_width(attribute) else alike)] = n


def squeezed(labels: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the labels along these dimensions (counted from the end) alone."""
    for d in range(labels.ndim):
        if d - labels.ndim not in dims:
            labels = labels.narrow(d, 0, 1)
    return labels.reshape([labels.shape[d] for d in dims]).contiguous()


def _clash(slots: Sequence[Tensor]) -> tuple[int, int] | None:
    runs = [varying(slot) for slot in slots]
    for i in range(len(slots)):
        for j in range(i + 1, len(slots)):
            if runs[i] & runs[j]:
                return i, j
    return None


def _grid_of(call: Call, slot: Tensor) -> Grid | None:
    return call.state.grids.owning(int(slot.max()))


def _slot_of(call: Call, grid: Grid, dim: int, slots: Sequence[Tensor]) -> Tensor | None:
    """Return the slot whose labels are all of this dimension of the grid."""
    axis = grid.axes[dim]
    if axis is None:
        return None
    for slot in slots:
        if int(compressed(slot).min()) >= axis[0] and int(compressed(slot).max()) <= axis[-1]:
            return slot
    return None


def _entries(grid: Grid, slots: Sequence[Tensor]) -> Tensor:
    """Return the grid's labels at the indices that the slots of its dimensions spell."""
    shape = slots[0].shape
    small = [compressed(slot, *slots) for slot in slots]
    index = tuple(s - int(axis[0]) for s, axis in zip(small, grid.axes, strict=True) if axis is not None)
    return torch.from_numpy(grid.labels)[index].expand(shape)
