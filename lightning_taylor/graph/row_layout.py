"""Which rows of a layer's input belong to one example, call by call: learnt in the trace, read by who folds rows.

Shape legend: N = examples that come, L = rows of all calls of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Order", "RowLayout", "Stretch"]

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
        some: whether only some of the examples come, as after a mask over the batch.
        calls: how many calls these were; there may be others at another number of examples.
    """

    order: Order
    each: int = 1
    repeats: int = 1
    some: bool = False
    calls: int = 1

    @property
    def rows(self) -> int:
        """How many rows an example has in all calls."""
        return self.each * self.repeats


@dataclass(frozen=True)
class RowLayout:
    """The rows that a layer reads in one step.

    Attributes:
        stretches: in the order of the calls; empty if the rows mix examples, or nobody can say. Those of some examples
            are of the same ones.
    """

    stretches: tuple[Stretch, ...]

    @staticmethod
    def of(calls: Sequence[Sequence[int]], examples: int) -> RowLayout:
        """Read the layout off one step.

        Args:
            calls: the owner of every row of each call; -1 for a row that belongs to none, or to several.
            examples: how many there were.

        Example:
            >>> RowLayout.of([[0, 1, 0, 1]], examples=2).stretches
            (Stretch(order='views', each=2, repeats=1, some=False, calls=1),)
            >>> RowLayout.of([[0], [0], [1], [1], [3], [3]], examples=4).stretches
            (Stretch(order='examples', each=1, repeats=2, some=True, calls=6),)
        """
        # Two calls with the same rows repeat each other, usually; behind a mask they may be the ends of two chunks.
        for runs in (_runs(calls), [(list(call), 1) for call in calls if len(call)]):
            if stretches := _stretches(runs, tuple(range(examples))):
                return RowLayout(stretches)
        return RowLayout(())


def _stretches(runs: list[tuple[list[int], int]], whole: tuple[int, ...]) -> tuple[Stretch, ...]:
    """Return what the runs are, one stretch after the other; nothing if they mix examples, or nobody can say."""
    stretches: list[Stretch] = []
    chosen: set[tuple[int, ...]] = set()
    if any(-1 in call for call, _ in runs):
        return ()
    while runs:
        longest = next(reversed(list(_beginnings(runs, None))), None)
        beginning = next(iter(_beginnings(runs, whole)), longest)
        if beginning is None:
            return ()
        count, present, stretch = beginning
        chosen |= {present} - {whole}
        # Of whole calls any may belong to another objective.
        stretches += [replace(stretch, repeats=1, calls=1)] * stretch.repeats if count == 1 else [stretch]
        runs = runs[count:]
    return tuple(stretches) if len(chosen) < 2 else ()


def _beginnings(
    runs: list[tuple[list[int], int]], whole: tuple[int, ...] | None
) -> Iterator[tuple[int, tuple[int, ...], Stretch]]:
    """Yield how many of the first runs make a stretch, and of which examples: of the whole, or of those that come."""
    rows: list[int] = []
    for count, (call, repeats) in enumerate(runs, 1):
        if repeats != runs[0][1]:
            return
        rows += call
        present = tuple(sorted(set(rows))) if whole is None else whole
        if (order := _order(rows, present)) is not None:
            yield count, present, Stretch(order, len(rows) // len(present), repeats, whole is None, count * repeats)


def _runs(calls: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Count how often each call is made in a row with the same rows; calls without any are left out."""
    runs: list[tuple[list[int], int]] = []
    for call in map(list, calls):
        if runs and runs[-1][0] == call:
            runs[-1] = call, runs[-1][1] + 1
        elif call:
            runs.append((call, 1))
    return runs


def _order(rows: list[int], present: tuple[int, ...]) -> Order | None:
    """Return how complete rows are ordered; None if they are not complete."""
    each, rest = divmod(len(rows), len(present))
    if rest or not each:
        return None
    if rows == [owner for owner in present for _ in range(each)]:
        return "examples"
    return "views" if tuple(rows) == present * each else None
