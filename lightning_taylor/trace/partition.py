"""What a trace has learnt: which label stands for which axis entry, what is tied, what is frozen and why.

A *label* is an integer: one entry of one dimension of one parameter or buffer. Labels of one tensor dimension are
consecutive, so a label is ``base of the axis + index``. Dimensions of size one get no labels: their only entry
can never be removed. ``NEUTRAL`` marks what carries no channel.

Some axes are *virtual*: where code arranges channels as a grid (heads by head width, groups of a convolution), each
dimension of the grid gets labels of its own; see ``graph.grids``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.types import Axis, ChannelGroup, Operation, Role
from lightning_taylor.trace.options import TraceOptions

__all__ = [
    "NEUTRAL",
    "VIRTUAL",
    "LabelPartition",
]

NEUTRAL = -1

VIRTUAL = "<grid>"
"""In place of a tensor's name: an axis that only a trace knows."""


class LabelPartition:
    """Collects ties, freezes and roles during a trace; union-find is left to the end, when all are known."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        buffers: frozenset[str] = frozenset(),
        options: TraceOptions | None = None,
    ) -> None:
        self.options = options or TraceOptions()
        self._buffers = buffers
        self.seen: set[str] = set()
        self.followers: dict[tuple[str, str], tuple[Axis, int]] = {}
        self.axes: list[Axis] = []
        self.bases: list[int] = []
        self._bases_array = np.zeros(0, dtype=np.int64)
        self._base_of: dict[Axis, int] = {}
        total = 0
        for tensor, shape in shapes.items():
            for dim, size in enumerate(shape):
                if size > 1:
                    self.axes.append((tensor, dim))
                    self.bases.append(total)
                    self._base_of[tensor, dim] = total
                    total += size
        self.shapes = dict(shapes)
        self.total = total
        self.roles: dict[Axis, dict[Role, None]] = {}
        self._alike: dict[Axis, dict[Axis, None]] = {}
        self.layers: dict[str, Axis] = {}
        self.operations: list[Operation] = []
        self.reasons: list[str] = []
        self._reason_index: dict[str, int] = {}
        self._frozen_by = np.full(total, -1, dtype=np.int64)
        self._ties: list[np.ndarray] = []
        self._cuts: list[tuple[np.ndarray, np.ndarray, str, Any | None]] = []
        self._components: tuple[Any, np.ndarray] = None, np.zeros(0, dtype=np.int64)
        self.order: dict[Axis, int] = {}
        from lightning_taylor.trace.constraints.attribute_sizes import SplitSites
        from lightning_taylor.trace.constraints.grids import Grids
        from lightning_taylor.trace.constraints.query_key import QueryKeyPairs

        self.grids = Grids(self)
        self.contracted = QueryKeyPairs(self)
        self.places = SplitSites(self)

    def labels(self, tensor: str) -> tuple[Tensor, ...]:
        """One label tensor per dimension of a parameter, each of the parameter's shape, without its memory."""
        shape = self.shapes[tensor]
        slots = []
        for dim, size in enumerate(shape):
            if size > 1:
                base = self._base_of[tensor, dim]
                view = [1] * len(shape)
                view[dim] = size
                slots.append(torch.arange(base, base + size).view(view).expand(shape))
        return tuple(slots)

    def virtual_axis(self, size: int) -> Tensor:
        """Labels of a new axis that no tensor has, shape ``(size,)``."""
        base = self.total
        self.axes.append((VIRTUAL, len(self.axes)))
        self.bases.append(base)
        self.total += size
        self._frozen_by = np.concatenate([self._frozen_by, np.full(size, -1, dtype=np.int64)])
        return torch.arange(base, base + size)

    def _starts(self) -> np.ndarray:
        """The bases as an array: to make one from a list at every look-up takes time that grows with the depth."""
        if len(self._bases_array) != len(self.bases):
            self._bases_array = np.array(self.bases, dtype=np.int64)
        return self._bases_array

    def base_of(self, label: int) -> int:
        """The first label of the axis that a label belongs to."""
        return self.bases[bisect_right(self.bases, label) - 1]

    def real_axes(self, labels: Tensor) -> list[Axis]:
        """The axes that labels belong to, with those behind a grid's in place of the grid's own."""
        found: dict[Axis, None] = {}
        for axis in self.axes_of(labels):
            if axis[0] == VIRTUAL:
                grid = self.grids.owning(self.bases[axis[1]])
                found.update(dict.fromkeys(self.real_axes(torch.from_numpy(grid.labels)) if grid else ()))
            else:
                found[axis] = None
        return list(found)

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Labels that go together, pair by pair; both of the same shape, without ``NEUTRAL``."""
        differ = one != other
        if bool(differ.any()):
            self._ties.append(torch.stack([one[differ], other[differ]]).numpy())

    def freeze(self, labels: Tensor, reason: str) -> None:
        """These labels can never be removed; the first reason given for a label is the one that is kept."""
        at = _distinct(labels)
        at = at[self._frozen_by[at] < 0]
        self._frozen_by[at] = self._reason(reason)

    def tied_with(self, labels: np.ndarray) -> np.ndarray:
        """What was tied to one of these labels directly."""
        one, other = np.concatenate([np.zeros((2, 0), dtype=np.int64), *self._ties], axis=1)
        return np.unique(np.concatenate([other[np.isin(one, labels)], one[np.isin(other, labels)]]))

    def cut(self, part: Tensor, whole: Tensor, reason: str, place: Any | None = None) -> None:
        """Note a part that is taken out of a tensor at positions that the model's code counts; see ``settle_cuts``.

        Args:
            part: labels of any shape.
            whole: those of the tensor.
            reason: why what is cut unevenly has to stay.
            place: says which attributes may follow instead.
        """
        inside, outside = _squeezed(part).numpy().ravel(), _squeezed(whole).numpy().ravel()
        if len(inside) != len(outside):
            self._cuts.append((inside, outside, reason, place))

    def settle(self) -> None:
        """Choose the units of the grids, then freeze what is cut unevenly; call it when all ties are known."""
        self.contracted.settle()
        self.grids.settle()
        self.settle_cuts()

    def settle_cuts(self) -> None:
        """Freeze what is cut unevenly by numbers that follow nothing.

        Code that takes the first half of the channels takes the first half of what is left, too. That is the same
        half only if whatever goes takes as large a share of the part as of the whole.
        """
        component = self.components()
        for part, whole, reason, place in self._cuts:
            if place is not None and self.places.follows(place):
                continue
            there = whole[whole >= 0]
            names, at, in_whole = np.unique(component[there], return_inverse=True, return_counts=True)
            mine = component[part[part >= 0]]
            in_part = np.bincount(np.searchsorted(names, mine), minlength=len(names))
            uneven = in_part * len(whole) != in_whole * len(part)
            if bool(uneven.any()) and not (place is not None and self.places.follow_instead(place)):
                self.freeze(torch.from_numpy(there[uneven[at]]), reason)

    def assign(self, labels: Tensor, role: Role) -> None:
        """Note what the axes that these labels belong to do with their channels."""
        own = self.axes_of(labels)
        for axis in [*own, *(other for one in own for other in self._alike.get(one, ()))]:
            if axis[0] == VIRTUAL:
                continue
            self.roles.setdefault(axis, {})[role] = None
            self.order.setdefault(axis, len(self.order))

    def play_alike(self, labels: Tensor, others: Tensor) -> None:
        """From here on, what is assigned to the axes of some labels is assigned to those of others, too."""
        for axis in self.axes_of(labels):
            known = self._alike.setdefault(axis, {})
            for other in self.axes_of(others):
                known.update({other: None, **self._alike.get(other, {})} if other != axis else {})

    def is_buffer(self, labels: Tensor) -> bool:
        """Whether all these labels are a buffer's."""
        return all(tensor in self._buffers for tensor, _ in self.axes_of(labels))

    def axes_of(self, labels: Tensor) -> list[Axis]:
        """The axes that labels belong to, without repetition."""
        numbers = np.unique(np.searchsorted(self._starts(), _distinct(labels), side="right") - 1)
        return [self.axes[i] for i in numbers]

    def decode(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels -> (number of the axis, index along it)."""
        number = np.searchsorted(self._starts(), labels, side="right") - 1
        return number, labels - np.asarray(self.bases)[number]

    def are_real(self, labels: Tensor) -> bool:
        """Whether each of these labels is an entry of a tensor, not of a grid, and none is ``NEUTRAL``."""
        return bool((labels != NEUTRAL).all()) and all(axis[0] != VIRTUAL for axis in self.axes_of(labels))

    def staying(self, labels: Tensor, keep: Mapping[Axis, Tensor]) -> Tensor:
        """Which of these labels stay: booleans of their shape; ``keep`` as ``ChannelGraph.keep`` gives it."""
        stay = np.ones(self.total, dtype=bool)
        for axis, kept in keep.items():
            entries = self.entries(axis)
            stay[entries] = False
            stay[entries[kept.numpy()]] = True
        return torch.from_numpy(stay)[labels]

    def axes_of_size(self, size: int) -> list[Axis]:
        """The dimensions of tensors that have so many entries."""
        return [(tensor, dim) for tensor, dim in self._base_of if self.shapes[tensor][dim] == size]

    def entries(self, axis: Axis) -> np.ndarray:
        """All labels of an axis; empty for an axis of size one."""
        if axis not in self._base_of:
            return np.empty(0, dtype=np.int64)
        base = self._base_of[axis]
        tensor, dim = axis
        return np.arange(base, base + self.shapes[tensor][dim])

    def components(self) -> np.ndarray:
        """Label -> the smallest label it is tied to, by hooking and pointer jumping over all ties at once."""
        state = (self.total, len(self._ties), tuple(grid.unit for grid in self.grids))
        if self._components[0] != state:
            self._components = state, self._joined()
        return self._components[1]

    def _joined(self) -> np.ndarray:
        parent = np.arange(self.total)
        ties = [*self._ties, *self.grids.ties()]
        if not ties:
            return parent
        one, other = np.concatenate(ties, axis=1)
        while True:
            low, high = np.minimum(parent[one], parent[other]), np.maximum(parent[one], parent[other])
            if np.array_equal(low, high):
                return parent
            np.minimum.at(parent, high, low)
            jumped = parent[parent]
            while not np.array_equal(jumped, parent):
                parent, jumped = jumped, jumped[jumped]

    def frozen_components(self, component: np.ndarray) -> np.ndarray:
        """Component -> number of the reason that froze it, or -1; the earliest reason of its members counts."""
        number = np.full(self.total, len(self.reasons), dtype=np.int64)
        frozen = np.flatnonzero(self._frozen_by >= 0)
        np.minimum.at(number, component[frozen], self._frozen_by[frozen])
        number[number == len(self.reasons)] = -1
        return number

    def reason_of(self, labels: np.ndarray) -> str | None:
        """Why the first frozen one of these labels is frozen; None if none is."""
        frozen = self._frozen_by[labels]
        frozen = frozen[frozen >= 0]
        return self.reasons[frozen[0]] if len(frozen) else None

    def is_frozen(self, labels: np.ndarray) -> bool:
        """Whether one of these labels was frozen itself; of what it is tied to, see ``frozen_components``."""
        return bool((self._frozen_by[labels] >= 0).any())

    def freeze_axes(self, axes: Iterable[Axis], reason: str) -> None:
        """Freeze every entry of the given axes."""
        for axis in axes:
            self.freeze(torch.from_numpy(self.entries(axis)), reason)

    def freeze_labels_of(self, group: ChannelGroup, reason: str) -> None:
        """Freeze a whole group that was built from this partition."""
        self.freeze(torch.from_numpy(self.labels_of(group)), reason)

    def labels_of(self, group: ChannelGroup) -> np.ndarray:
        """One label of each of the group's channels at least."""
        first = group.slices[0]
        return self.entries(first.axis)[first.index.flatten().numpy()]

    def _reason(self, text: str) -> int:
        if text not in self._reason_index:
            self._reason_index[text] = len(self.reasons)
            self.reasons.append(text)
        return self._reason_index[text]


def _distinct(labels: Tensor) -> np.ndarray:
    """The labels in a tensor, each once, neutral left out, without walking its expanded dimensions."""
    found = np.unique(_squeezed(labels).numpy())
    return found[found >= 0]


def _squeezed(labels: Tensor) -> Tensor:
    """The labels with one entry along each expanded dimension."""
    for d in range(labels.ndim):
        if labels.shape[d] > 1 and labels.stride(d) == 0:
            labels = labels.narrow(d, 0, 1)
    return labels
