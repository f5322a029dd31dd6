"""Which rows of a layer's input belong to one example, call by call: learnt in the trace, read by who folds rows.

Shape legend: N = examples that come, L = rows of all calls of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Order", "RowLayout", "Stretch", "layout_from_plain", "layout_to_plain"]

Order = Literal["examples", "views"]
"""The rows of an example stand together, as frames do; or those of a view, as where views are joined."""


@dataclass(frozen=True)
class Stretch:
    """Calls of a layer, one after the other, that together read each example equally often.

    Attributes:
        order: of the rows, the calls' rows put one after the other.
        each: how many rows an example has.
        repeats: how many calls, one after the other, read the same part of the examples, as a layer that is called
            twice for each chunk of a batch.
    """

    order: Order
    each: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class RowLayout:
    """The rows that a layer reads in one step.

    Attributes:
        stretches: in the order of the calls; empty if the rows mix examples, or nobody can say.
        some: whether only some of the examples come, as after a mask over the batch.
    """

    stretches: tuple[Stretch, ...]
    some: bool = False

    @property
    def each(self) -> int:
        """How many rows an example has in all calls."""
        return sum(stretch.each * stretch.repeats for stretch in self.stretches)

    @staticmethod
    def of(calls: Sequence[Sequence[int]], examples: int) -> RowLayout:
        """Read the layout off one step.

        Args:
            calls: the owner of every row of each call; -1 for a row that belongs to none, or to several.
            examples: how many there were.

        Example:
            >>> RowLayout.of([[0, 1, 0, 1], [0, 0, 1, 1]], examples=2).stretches
            (Stretch(order='views', each=2, repeats=1), Stretch(order='examples', each=2, repeats=1))
            >>> RowLayout.of([[0], [0], [1], [1], [3], [3]], examples=4)
            RowLayout(stretches=(Stretch(order='examples', each=1, repeats=2),), some=True)
        """
        present = sorted({owner for call in calls for owner in call})
        if not present or -1 in present:
            return RowLayout(())
        stretches: list[Stretch] = []
        open_rows: list[int] = []
        repeats = 0
        for call, times in _runs(calls):
            if open_rows and times != repeats:
                return RowLayout(())
            open_rows, repeats = [*open_rows, *call], times
            if (order := _order(open_rows, present)) is not None:
                each = len(open_rows) // len(present)
                # Of whole calls any may belong to another objective.
                whole = len(open_rows) == len(call)
                stretches += [Stretch(order, each)] * repeats if whole else [Stretch(order, each, repeats)]
                open_rows = []
        return RowLayout(() if open_rows else tuple(stretches), some=len(present) < examples)


def _runs(calls: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Count how often each call is made in a row with the same rows; calls without any are left out."""
    runs: list[tuple[list[int], int]] = []
    for call in map(list, calls):
        if runs and runs[-1][0] == call:
            runs[-1] = call, runs[-1][1] + 1
        elif call:
            runs.append((call, 1))
    return runs


def _order(rows: list[int], present: list[int]) -> Order | None:
    """Return how complete rows are ordered; None if they are not complete."""
    each, rest = divmod(len(rows), len(present))
    if rest or not each:
        return None
    if rows == [owner for owner in present for _ in range(each)]:
        return "examples"
    return "views" if rows == present * each else None


def layout_to_plain(layout: RowLayout) -> list[Any]:
    """Return a layout as a list."""
    return [layout.some, [[s.order, s.each, s.repeats] for s in layout.stretches]]


def layout_from_plain(plain: list[Any]) -> RowLayout:
    """Return the layout that ``layout_to_plain`` was called on."""
    some, stretches = plain
    return RowLayout(tuple(Stretch(*stretch) for stretch in stretches), some)
