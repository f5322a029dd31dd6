"""Channels that code arranges as a grid: heads by head width, groups of a convolution, halves of a chunk.

A ``view`` that splits channels into several dimensions (or a grouped convolution, which does it implicitly) works
after a removal only if what is left is a grid again: whole rows must go, or whole columns. Each dimension of the grid
gets labels of its own, a *virtual axis*. What happens to the tensor from there on happens to these: summing over
the heads freezes the heads, and leaves the columns. In the end one dimension is chosen as the units of removal, and
its labels are tied to all entries of their row; where the proof by trial refuses a choice, the next one is made.

The road not taken: a constraint "as many of each block" for the selection would allow more removals, but the
channels of a shuffled or reshaped tensor would come back in another order than its readers have them.

Shape legend: F = the grid's entries, of shape (n1, ..., nk); n = entries of one of its dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.types import Axis, LinkedAttribute
from lightning_taylor.modules.attention import SCALED_BY
from lightning_taylor.trace.constraints.query_key import QueryKeyPairs
from lightning_taylor.trace.partition import Constraint, LabelPartition
from lightning_taylor.trace.reasons import Why

__all__ = [
    "MERGED",
    "Grid",
    "Grids",
]

MERGED = -1
"""In place of a dimension."""


@dataclass(eq=False)
class Grid:
    """One arrangement of channels.

    Attributes:
        labels: shape (n1, ..., nk): the channels, as they were labelled before.
        axes: one label vector per dimension; None for a dimension that can never be the unit.
        where: the operator and the module, for reasons in words.
        kind: grids of one kind are made by the same code, and take the same unit.
        order: the dimensions in the order in which they are tried as units.
        unit: the dimension whose entries are the units of removal; None if there is none (left).
        only_if_uneven: nothing has to be tied, as long as what is tied anyway leaves the rows of the first dimension
            alike.
        size_attributes: (module, attribute, dimensions) -> value, of whole numbers that count the grid's entries along
            one of these dimensions, the likeliest first; ``MERGED`` for those that count what several are merged into.
        inside: the same of numbers inside of lists, tuples and dicts, which more often are as large by chance: they are
            believed where a unit was refused without them.
        counted: the dimension of a tensor that has an entry for each of the grid's, and no other; None if the labels
            tell. They do not where several layers' channels were concatenated.
    """

    labels: np.ndarray
    axes: tuple[np.ndarray | None, ...]
    where: str
    kind: Any
    order: tuple[int, ...]
    unit: int | None = None
    only_if_uneven: bool = False
    size_attributes: dict[tuple[str, str, tuple[int, ...]], int] = field(default_factory=dict)
    inside: dict[tuple[str, str, tuple[int, ...]], int] = field(default_factory=dict)
    counted: Axis | None = None

    def shrinking_dim(self, dims: tuple[int, ...], frozen: Callable[[np.ndarray], bool]) -> int | None:
        """The first of these dimensions that can shrink at all: three heads are as many as queries, keys and values."""
        for dim in dims:
            if dim == MERGED or ((axis := self.axes[dim]) is not None and not frozen(axis)):
                return dim
        return None

    def ties(self) -> np.ndarray:
        """Pairs of labels, shape ``(2, F)``: every entry with that of the unit it belongs to."""
        assert self.unit is not None
        units = self.axes[self.unit]
        assert units is not None
        shape = [1] * self.labels.ndim
        shape[self.unit] = len(units)
        return np.stack([self.labels.ravel(), np.broadcast_to(units.reshape(shape), self.labels.shape).ravel()])


class Grids(Constraint):
    """All grids of a trace.

    Args:
        partition: where what has no unit is frozen.
        pairs: which labels are contracted, so that they can only go as the width of heads.
    """

    def __init__(self, partition: LabelPartition, pairs: QueryKeyPairs) -> None:
        self._partition = partition
        self._pairs = pairs
        self._all: dict[Any, Grid] = {}
        self._of_axis: dict[int, Grid] = {}
        self._refused: dict[Any, dict[int, str]] = {}
        self._looked_inside: set[tuple[Any, int | None]] = set()

    def __iter__(self) -> Iterator[Grid]:
        return iter(self._all.values())

    def split(
        self, labels: Tensor, where: str, kind: Any, order: Sequence[int] | None = None, *, only_if_uneven: bool = False
    ) -> Grid:
        """Note a grid, once however often it is run.

        Args:
            labels: shape (n1, ..., nk), int64, the label of each entry.
            where: for reasons.
            kind: hashable; grids of one kind take the same unit.
            order: the dimensions that may be units, the preferred first; by default all, in order.
            only_if_uneven: see ``Grid``.
        """
        shape = tuple(labels.shape)
        key = (labels.numpy().tobytes(), shape)
        if key not in self._all:
            allowed = tuple(range(len(shape))) if order is None else tuple(order)
            arranged = labels.numpy().copy()
            axes = tuple(
                self._partition.virtual_axis(n, arranged).numpy() if d in allowed or order is None else None
                for d, n in enumerate(shape)
            )
            grid = Grid(arranged, axes, where, kind, allowed, only_if_uneven=only_if_uneven)
            self._all[key] = grid
            self._of_axis.update({int(axis[0]): grid for axis in axes if axis is not None})
        elif order is not None and (both := self._all[key]).order:
            # Of channels that two layers arrange alike, only what both can lose may go.
            both.order = tuple(d for d in both.order if d in order)
            both.where += "" if both.order else f" and otherwise by {where}"
        return self._all[key]

    def owning(self, label: int) -> Grid | None:
        """Return the grid that a label of a virtual axis belongs to."""
        return self._of_axis.get(self._partition.base_of(label))

    def settle(self) -> None:
        """Choose the units; grids of grids first, since they tell what is possible in the outer ones."""
        for grid in reversed(list(self)):
            if not grid.only_if_uneven:
                self._choose(grid)
        for grid in self:
            if grid.only_if_uneven and not self._alike(grid):
                self._choose(grid)

    def ties(self) -> Iterable[np.ndarray]:
        """Return the pairs of labels that the chosen units tie."""
        units = [grid for grid in self if grid.unit is not None]
        return [*(grid.ties() for grid in units), *self._counted_together(units)]

    def _counted_together(self, units: Sequence[Grid]) -> Iterator[np.ndarray]:
        """Queries and values whose widths one attribute counts can only lose as many coordinates: the same."""
        first: dict[tuple[str, str], np.ndarray] = {}
        for grid in units:
            assert grid.unit is not None
            axis = grid.axes[grid.unit]
            if axis is None or not any(self._contracted(g, grid.unit) for g in units if g.kind == grid.kind):
                continue
            for module, attribute, dims in grid.size_attributes:
                if grid.shrinking_dim(dims, self._partition.is_frozen) == grid.unit:
                    yield np.stack([first.setdefault((module, attribute), axis), axis])

    def try_next(self, labels: np.ndarray, reason: str) -> bool:
        """Give up the unit of a grid that these channels belong to, for the next possible one or for none.

        Before that, let the numbers inside of lists, tuples and dicts follow it. All grids of the same kind change with
        it: what the same code refuses once, it refuses every time.

        Returns:
            Whether these channels belong to a grid.
        """
        around = self._around(labels)
        if not around:
            return False
        for grid in around:
            if grid.inside and (grid.kind, grid.unit) not in self._looked_inside:
                self._looked_inside.add((grid.kind, grid.unit))
                return True
        # One that has another choice goes first; a choice that was innocent is lost with it.
        grid = next((g for g in around if len(self._choices(g)) > 1), around[-1])
        assert grid.unit is not None
        self._refused.setdefault(grid.kind, {})[grid.unit] = reason
        for other in reversed(list(self)):
            if other.kind == grid.kind and other.unit is not None:
                self._choose(other)
        return True

    def affects(self, labels: np.ndarray) -> bool:
        """Return whether these channels belong to a grid that has units."""
        return bool(self._around(labels))

    def linked_attributes(self) -> Iterator[LinkedAttribute]:
        """Yield the attributes that count the units of a grid, or all of its entries."""
        for grid in self:
            if grid.unit is None:
                continue
            axes = [grid.counted] if grid.counted else self._partition.real_axes(torch.from_numpy(grid.labels))
            if len(axes) != 1:
                continue
            tensor, dim = axes[0]
            inside = grid.inside if (grid.kind, grid.unit) in self._looked_inside else {}
            for (module, attribute, dims), value in {**grid.size_attributes, **inside}.items():
                if grid.shrinking_dim(dims, self._partition.is_frozen) in (grid.unit, MERGED):
                    width = 0 if attribute == SCALED_BY else self._partition.shapes[tensor][dim]
                    yield LinkedAttribute(module, attribute, axes[0], value, width)

    def held(self, component: np.ndarray) -> dict[int, str]:
        """Map a component to why a grid that it is tied to has no unit: that of values whose heads queries share."""
        held: dict[int, str] = {}
        for grid in self:
            reason = self._partition.reason_of(grid.labels.ravel()) if grid.unit is None else None
            for axis in grid.axes if reason else ():
                held.update(dict.fromkeys(component[axis].tolist() if axis is not None else (), reason or ""))
        return held

    def _around(self, labels: np.ndarray) -> list[Grid]:
        component = self._partition.components()
        members = component[labels]
        return [g for g in self if g.unit is not None and bool(np.isin(component[g.labels], members).any())]

    def _choose(self, grid: Grid) -> None:
        choices, peers = self._choices(grid), [g for g in self if g.kind == grid.kind]
        others = [possible for g in peers if (possible := self._choices(g))]
        # Queries and keys can only lose whole heads, so values had better do so too.
        common = [d for d in choices if all(d in possible for possible in others)]
        # Contracted ones can go only where the user wants the width of heads, not heads.
        width = [d for d in common if any(self._contracted(g, d) for g in peers)]
        unit = next(iter(width or common or choices), None)
        if unit != grid.unit:
            grid.unit = unit
            self._partition.forget_components()
        if unit is None:
            frozen = [self._partition.reason_of(axis) for axis in grid.axes if axis is not None]
            reasons = [*self._refused.get(grid.kind, {}).values(), *filter(None, frozen)]
            self._partition.freeze(torch.from_numpy(grid.labels), (reasons or [Why.GRID(grid.where)])[0])

    def _choices(self, grid: Grid) -> list[int]:
        """Return the dimensions that can be its units, the preferred first."""
        refused = self._refused.get(grid.kind, {})
        axes = {d: axis for d in grid.order if (axis := grid.axes[d]) is not None}
        return [d for d, axis in axes.items() if d not in refused and not self._partition.is_frozen(axis)]

    def _contracted(self, grid: Grid, dim: int) -> bool:
        """Return whether the entries of one of its dimensions are multiplied with other ones and summed over."""
        axis = grid.axes[dim]
        return axis is not None and bool(self._pairs.are(axis).any())

    def _alike(self, grid: Grid) -> bool:
        """Return whether what is tied anyway takes as many entries of every row."""
        component = self._partition.components()[grid.labels]
        names, at = np.unique(component, return_inverse=True)
        at = at.reshape(component.shape)
        counts = np.stack([np.bincount(row.ravel(), minlength=len(names)) for row in at])
        return bool((counts == counts[0]).all())
