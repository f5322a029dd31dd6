"""From the rows of a layer's calls to one row for each example, signs kept.

Shape legend: L = rows of one call, I = input channels, N = examples of the batch, n = rows of the result: N, or fewer
where some examples do not come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from lightning_taylor.graph.row_layout import RowLayout, Stretch
from lightning_taylor.scores.formulas import fold_examples

__all__ = ["fold_calls"]


def fold_calls(calls: Sequence[Tensor], examples: int, layout: RowLayout | None = None) -> Tensor:
    """Add up the rows of each example, over all calls of a layer.

    Args:
        calls: shape ``(L, I)`` each, in the order of the forward pass; read only.
        examples: N, at least 1.
        layout: how the rows hold the examples; None if they hold one row of each, or several in sequence.

    Returns:
        Shape ``(n, I)``. Where the layout does not tell, each row stands for itself.

    Raises:
        ValueError: if ``examples`` is less than 1.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> fold_calls([rows], 2).tolist(), fold_calls([rows], 2, RowLayout((Stretch("views", 2),))).tolist()
        ([[3.0], [7.0]], [[4.0], [6.0]])
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    if layout is None:
        return _fold_simply(calls, examples)
    for stretches, count in _readings(layout, sum(map(len, calls)), examples):
        folded = _fold(list(calls), stretches, count)
        if folded is not None:
            return folded
    return torch.cat(list(calls))


def _fold_simply(calls: Sequence[Tensor], examples: int) -> Tensor:
    """Calls that have fewer rows than there are examples, and together as many, are chunks of the batch."""
    if all(len(call) and len(call) % examples == 0 for call in calls):
        return reduce(torch.add, (fold_examples(call_LI, examples) for call_LI in calls))
    return torch.cat(list(calls))


def _readings(layout: RowLayout, rows: int, examples: int) -> Iterator[tuple[Sequence[Stretch], int]]:
    """Yield which stretches the calls may be, of how many examples; the likeliest first.

    An objective that is one of several has made only some of the calls.
    """
    stretches = layout.stretches
    if not layout.some:
        parts = [stretches[i:j] for i in range(len(stretches)) for j in range(i + 1, len(stretches) + 1)]
        for part in sorted(parts, key=len, reverse=True):
            yield part, examples
        if len(set(stretches)) == 1 and rows % (each := stretches[0].each * examples) == 0:
            yield [Stretch(stretches[0].order, stretches[0].each)] * (rows // each), examples
    if stretches and rows % layout.each == 0 and rows // layout.each <= examples:
        yield stretches, rows // layout.each


def _fold(calls: list[Tensor], stretches: Sequence[Stretch], count: int) -> Tensor | None:
    """Fold calls that are such stretches of so many examples; None if they are not."""
    if sum(map(len, calls)) != count * sum(s.each * s.repeats for s in stretches):
        return None
    total: Tensor | None = None
    for stretch in stretches:
        rows = _take(calls, stretch, count)
        if rows is None:
            return None
        folded = _folded(rows, stretch, count)
        total = folded if total is None else total + folded
    return total


def _take(calls: list[Tensor], stretch: Stretch, count: int) -> Tensor | None:
    """Take the rows of a stretch from the beginning of the calls; those that are read several times added up."""
    wanted, taken = stretch.each * count, []
    while wanted > 0:
        same, calls[: stretch.repeats] = calls[: stretch.repeats], []
        if len({len(call) for call in same}) != 1 or (stretch.repeats > 1 and len(same[0]) > wanted):
            return None
        rows = reduce(torch.add, same)
        if len(rows) > wanted:  # views in one chunk
            rows, rest = rows[:wanted], rows[wanted:]
            calls.insert(0, rest)
        taken.append(rows)
        wanted -= len(rows)
    return torch.cat(taken)


def _folded(rows_LI: Tensor, stretch: Stretch, count: int) -> Tensor:
    if stretch.each == 1:
        return rows_LI
    if stretch.order == "views":
        return rows_LI.unflatten(0, (stretch.each, count)).sum(0)
    return rows_LI.unflatten(0, (count, stretch.each)).sum(1)
