"""What a trace has learnt: which label stands for which axis entry, what is tied, what is frozen and why.

A *label* is an integer: one entry of one dimension of one parameter or buffer. Labels of one tensor dimension are
consecutive, so a label is ``base of the axis + index``. Dimensions of size one get no labels: their only entry
can never be removed. ``NEUTRAL`` marks what carries no channel.

Some axes are *virtual*: where code arranges channels as a grid (heads by head width, groups of a convolution), each
dimension of the grid gets labels of its own; see ``constraints.grids``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.types import Axis, ChannelGroup, LinkedAttribute, Operation, Role
from lightning_taylor.trace.distinct import distinct
from lightning_taylor.trace.options import TraceOptions

__all__ = [
    "NEUTRAL",
    "VIRTUAL",
    "Constraint",
    "LabelPartition",
]

NEUTRAL = -1

VIRTUAL = "<grid>"
"""In place of a tensor's name: an axis that only a trace knows."""


class Constraint(Protocol):
    """A decision about labels that takes more than ties, and waits until all of those are known.

    A partition asks its constraints and knows none of them by name. Each method does nothing unless it is overridden.
    """

    def settle(self) -> None:
        """Decide, and tie or freeze labels accordingly."""

    def ties(self) -> Iterable[np.ndarray]:
        """Return pairs of labels, shape ``(2, n)`` each, that are tied by what was decided so far."""
        return ()

    def try_next(self, labels: np.ndarray, reason: str) -> bool:
        """Decide otherwise for channels that the proof by trial refused.

        Args:
            labels: one label of each channel at least.
            reason: why they were refused.

        Returns:
            Whether the constraint has taken care of these channels; if not, the next one is asked.
        """
        return False

    def affects(self, labels: np.ndarray) -> bool:
        """Return whether these channels depend on a decision that can still change."""
        return False

    def linked_attributes(self) -> Iterable[LinkedAttribute]:
        """Return the attributes of modules that must follow widths by what was decided."""
        return ()


class LabelPartition:
    """Collects ties, freezes and roles during a trace; union-find is left to the end, when all are known.

    Attributes:
        constraints: what else decides about labels, in the order in which they settle; whoever starts a trace sets it.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        buffers: frozenset[str] = frozenset(),
        options: TraceOptions | None = None,
    ) -> None:
        self.options = options or TraceOptions()
        self._buffers = buffers
        self.constraints: tuple[Constraint, ...] = ()
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
        self._arranged: dict[Axis, np.ndarray] = {}
        self._joined_at: tuple[int, int] | None = None
        self._joined = np.zeros(0, dtype=np.int64)
        self.order: dict[Axis, int] = {}

    def labels(self, tensor: str) -> tuple[Tensor, ...]:
        """Return one label tensor per dimension of a parameter, each of the parameter's shape, without its memory."""
        shape = self.shapes[tensor]
        slots = []
        for dim, size in enumerate(shape):
            if size > 1:
                base = self._base_of[tensor, dim]
                view = [1] * len(shape)
                view[dim] = size
                slots.append(torch.arange(base, base + size).view(view).expand(shape))
        return tuple(slots)

    def virtual_axis(self, size: int, arranged: np.ndarray | None = None) -> Tensor:
        """Make a new axis that no tensor has.

        Args:
            size: how many entries it has.
            arranged: the labels that it is one dimension of an arrangement of; None for an axis of no arrangement.

        Returns:
            Its labels, shape ``(size,)``.
        """
        base = self.total
        if arranged is not None:
            self._arranged[VIRTUAL, len(self.axes)] = arranged
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
        """Return the first label of the axis that a label belongs to."""
        return self.bases[bisect_right(self.bases, label) - 1]

    def real_axes(self, labels: Tensor) -> list[Axis]:
        """Return the axes that labels belong to, with those of the arranged labels in place of a virtual one."""
        axes: dict[Axis, None] = {}
        for axis in self.axes_of(labels):
            if axis[0] != VIRTUAL:
                axes[axis] = None
            elif axis in self._arranged:
                axes.update(dict.fromkeys(self.real_axes(torch.from_numpy(self._arranged[axis]))))
        return list(axes)

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
        """Return what was tied to one of these labels directly."""
        one, other = np.concatenate([np.zeros((2, 0), dtype=np.int64), *self._ties], axis=1)
        return distinct(np.concatenate([other[np.isin(one, labels)], one[np.isin(other, labels)]]))

    def settle(self) -> None:
        """Let every constraint decide; call it when all ties are known."""
        for constraint in self.constraints:
            constraint.settle()

    def try_next(self, labels: np.ndarray, reason: str) -> bool:
        """Let the constraints decide otherwise about refused channels, the one that settled last first.

        Returns:
            Whether one of them has done so; see ``Constraint.try_next``.
        """
        return any(constraint.try_next(labels, reason) for constraint in reversed(self.constraints))

    def is_open(self, labels: np.ndarray) -> bool:
        """Return whether these channels depend on a constraint's decision that can still change."""
        return any(constraint.affects(labels) for constraint in self.constraints)

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
        """Return whether all these labels are a buffer's."""
        return all(tensor in self._buffers for tensor, _ in self.axes_of(labels))

    def axes_of(self, labels: Tensor) -> list[Axis]:
        """Return the axes that labels belong to, without repetition."""
        numbers = distinct(np.searchsorted(self._starts(), _distinct(labels), side="right") - 1)
        return [self.axes[i] for i in numbers]

    def decode(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels -> (number of the axis, index along it)."""
        number = np.searchsorted(self._starts(), labels, side="right") - 1
        return number, labels - np.asarray(self.bases)[number]

    def are_real(self, labels: Tensor) -> bool:
        """Return whether each of these labels is an entry of a tensor, not of a grid, and none is ``NEUTRAL``."""
        return bool((labels != NEUTRAL).all()) and all(axis[0] != VIRTUAL for axis in self.axes_of(labels))

    def staying(self, labels: Tensor, keep: Mapping[Axis, Tensor]) -> Tensor:
        """Return which of these labels stay: booleans of their shape; ``keep`` as ``ChannelGraph.keep`` gives it."""
        stay = np.ones(self.total, dtype=bool)
        for axis, kept in keep.items():
            entries = self.entries(axis)
            stay[entries] = False
            stay[entries[kept.numpy()]] = True
        return torch.from_numpy(stay)[labels]

    def axes_of_size(self, size: int) -> list[Axis]:
        """Return the dimensions of tensors that have so many entries."""
        return [(tensor, dim) for tensor, dim in self._base_of if self.shapes[tensor][dim] == size]

    def entries(self, axis: Axis) -> np.ndarray:
        """Return all labels of an axis; empty for an axis of size one."""
        if axis not in self._base_of:
            return np.empty(0, dtype=np.int64)
        base = self._base_of[axis]
        tensor, dim = axis
        return np.arange(base, base + self.shapes[tensor][dim])

    def components(self) -> np.ndarray:
        """Map each label to the smallest label it is tied to, by hooking and pointer jumping over all ties at once."""
        size = self.total, len(self._ties)
        if self._joined_at != size:
            self._joined_at, self._joined = size, self._join()
        return self._joined

    def forget_components(self) -> None:
        """Join labels anew when they are next asked for: the ties of a constraint have changed."""
        self._joined_at = None

    def _join(self) -> np.ndarray:
        parent = np.arange(self.total)
        ties = [*self._ties, *(pairs for constraint in self.constraints for pairs in constraint.ties())]
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
        """Return why the first frozen one of these labels is frozen; None if none is."""
        frozen = self._frozen_by[labels]
        frozen = frozen[frozen >= 0]
        return self.reasons[frozen[0]] if len(frozen) else None

    def is_frozen(self, labels: np.ndarray) -> bool:
        """Return whether one of these labels was frozen itself; of what it is tied to, see ``frozen_components``."""
        return bool((self._frozen_by[labels] >= 0).any())

    def freeze_axes(self, axes: Iterable[Axis], reason: str) -> None:
        """Freeze every entry of the given axes."""
        for axis in axes:
            self.freeze(torch.from_numpy(self.entries(axis)), reason)

    def freeze_labels_of(self, group: ChannelGroup, reason: str) -> None:
        """Freeze a whole group that was built from this partition."""
        self.freeze(torch.from_numpy(self.labels_of(group)), reason)

    def labels_of(self, group: ChannelGroup) -> np.ndarray:
        """Return one label of each of the group's channels at least."""
        first = group.slices[0]
        return self.entries(first.axis)[first.index.flatten().numpy()]

    def _reason(self, text: str) -> int:
        if text not in self._reason_index:
            self._reason_index[text] = len(self.reasons)
            self.reasons.append(text)
        return self._reason_index[text]


def _distinct(labels: Tensor) -> np.ndarray:
    """Return the labels in a tensor, each once, neutral left out, without walking its expanded dimensions."""
    numbers = distinct(_squeezed(labels).numpy())
    return numbers[numbers >= 0]


def _squeezed(labels: Tensor) -> Tensor:
    """Return the labels with one entry along each expanded dimension."""
    for d in range(labels.ndim):
        if labels.shape[d] > 1 and labels.stride(d) == 0:
            labels = labels.narrow(d, 0, 1)
    return labels
