"""From the rows of a layer's calls to one row for each example, signs kept.

Shape legend: L = rows of one call, I = input channels, N = examples of the batch, n = rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from lightning_taylor.graph.row_layout import RowLayout, Stretch
from lightning_taylor.scores.formulas import fold_examples

__all__ = ["fold_calls"]


def fold_calls(calls: Sequence[Tensor], examples: int, layout: RowLayout | None = None) -> list[Tensor]:
    """Add up the rows of each example, over all calls of a layer.

    Args:
        calls: shape ``(L, I)`` each, in the order of the forward pass; read only.
        examples: N, at least 1.
        layout: how the rows hold the examples; None if they hold one row of each, or several in sequence.

    Returns:
        Blocks of shape ``(n, I)``: of all N examples; of those that a mask chose; or of rows that stand for
        themselves, since the layout does not tell whose they are. Usually only the first.

    Raises:
        ValueError: if ``examples`` is less than 1.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> fold_calls([rows], 2)[0].tolist(), fold_calls([rows], 2, RowLayout((Stretch("views", 2),)))[0].tolist()
        ([[3.0], [7.0]], [[4.0], [6.0]])
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    if layout is None:
        return _fold_simply(calls, examples)
    readings = list(_readings(layout.stretches, len(calls), sum(map(len, calls)), examples))
    # The end of a stretch lies within a call only where chunks are cut across views; and what was one call in the trace
    # is several only where chunks have a fixed size.
    for splits in (False, True):
        for stretches, some in readings:
            blocks = _fold(calls, stretches, (examples, some), splits=splits)
            if blocks is not None:
                return blocks
    return [torch.cat(list(calls))]


def _fold_simply(calls: Sequence[Tensor], examples: int) -> list[Tensor]:
    """Calls that have fewer rows than there are examples, and together as many, are chunks of the batch."""
    if all(len(call) and len(call) % examples == 0 for call in calls):
        return [reduce(torch.add, (fold_examples(call_LI, examples) for call_LI in calls))]
    return [torch.cat(list(calls))]


def _readings(
    stretches: tuple[Stretch, ...], calls: int, rows: int, examples: int
) -> Iterator[tuple[Sequence[Stretch], int]]:
    """Yield which stretches the calls may be, and how many examples a mask then chose; the likeliest first.

    An objective that is one of several has made only some of the calls; and a mask may have chosen all in the trace.
    """
    parts = [stretches[i:j] for i in range(len(stretches)) for j in range(i + 1, len(stretches) + 1)]
    masked = tuple(replace(stretch, some=True) for stretch in stretches)

    def unlikely(part: Sequence[Stretch]) -> tuple[bool, int, int]:
        return sum(s.calls for s in part) != calls, -len(part), sum(s.some for s in part)

    for part in [*sorted(parts, key=unlikely), masked]:
        rest = rows - examples * sum(s.rows for s in part if not s.some)
        each = sum(s.rows for s in part if s.some)
        if each and rest % each == 0 and 0 < rest // each <= examples:
            yield part, rest // each
        elif not each and rest == 0:
            yield part, 0


def _fold(
    calls: Sequence[Tensor], stretches: Sequence[Stretch], counts: tuple[int, int], *, splits: bool
) -> list[Tensor] | None:
    """Fold calls that are such stretches, of all examples and of some; None if they are not."""
    blocks: dict[bool, Tensor] = {}
    reader = _Reader(calls)
    for stretch in stretches:
        count = counts[stretch.some]
        before = reader.calls
        rows = reader.take(stretch.each * count, stretch.repeats)
        several = stretch.calls == 1 < before - reader.calls
        if rows is None or ((reader.within_call or several) and not splits):
            return None
        folded = _folded(rows, stretch, count)
        blocks[stretch.some] = blocks[stretch.some] + folded if stretch.some in blocks else folded
    return list(blocks.values())


class _Reader:
    """Hands out the rows of calls, those of calls that repeat each other added up."""

    def __init__(self, calls: Sequence[Tensor]) -> None:
        self._calls = list(calls)
        self._left: tuple[Tensor, int] | None = None
        """Rows that were added up and not taken: a chunk may hold the end of one view and the beginning of the next."""

    @property
    def calls(self) -> int:
        """How many calls are left."""
        return len(self._calls)

    @property
    def within_call(self) -> bool:
        """Whether what was taken ended within a call."""
        return self._left is not None

    def take(self, rows: int, repeats: int) -> Tensor | None:
        """Take so many rows; None if the calls are others."""
        taken: list[Tensor] = []
        while rows > 0:
            added = self._next(repeats)
            if added is None:
                return None
            taken.append(added[:rows])
            if len(added) > rows:
                self._left = added[rows:], repeats
            rows -= len(taken[-1])
        return torch.cat(taken)

    def _next(self, repeats: int) -> Tensor | None:
        if self._left is not None:
            (left, times), self._left = self._left, None
            return left if times == repeats else None
        same, self._calls = self._calls[:repeats], self._calls[repeats:]
        if len(same) != repeats or len({len(call) for call in same}) != 1:
            return None
        return reduce(torch.add, same)


def _folded(rows_LI: Tensor, stretch: Stretch, count: int) -> Tensor:
    if stretch.each == 1:
        return rows_LI
    if stretch.order == "views":
        return rows_LI.unflatten(0, (stretch.each, count)).sum(0)
    return rows_LI.unflatten(0, (count, stretch.each)).sum(1)
