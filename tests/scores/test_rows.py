"""The rows of an example, added up over all calls, whatever the number of examples; the slow twin keeps owners."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_taylor.graph.row_layout import RowLayout
from lightning_taylor.scores.rows import fold_calls

Calls = Callable[[Tensor], list[Tensor]]
STEPS: dict[str, Calls] = {
    "one row each": lambda n: [n],
    "frames": lambda n: [n.repeat_interleave(3)],
    "views": lambda n: [n.repeat(2)],
    "called twice": lambda n: [n, n],
    "chunks": lambda n: list(n.chunk(3)),
    "chunks of three": lambda n: list(n.split(3)),
    "called twice in chunks": lambda n: [part for chunk in n.chunk(2) for part in (chunk, chunk)],
    "frames in chunks": lambda n: list(n.repeat_interleave(2).chunk(2)),
    "views in chunks": lambda n: list(n.repeat(3).chunk(4)),
    "views called twice in chunks": lambda n: [part for chunk in n.repeat(2).chunk(2) for part in (chunk, chunk)],
    "views called twice in uneven chunks": lambda n: [part for x in n.repeat(2).chunk(4) for part in (x, x)],
    "frames, then images": lambda n: [n.repeat_interleave(2), n],
    "images, then views in chunks": lambda n: [n, *n.repeat(2).chunk(3)],
}


def added(calls: list[Tensor], owners: list[Tensor]) -> Tensor:
    """Row by row."""
    present = sorted({int(o) for own in owners for o in own})
    total = torch.zeros(len(present), calls[0].shape[1], dtype=calls[0].dtype)
    for call, own in zip(calls, owners, strict=True):
        for row, o in zip(call, own, strict=True):
            total[present.index(int(o))] += row
    return total


@pytest.mark.parametrize("examples", [5, 6, 8, 12])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("masked", [False, True])
def test_each_example_gets_its_rows_at_any_number_of_examples(step: Calls, examples: int, masked: bool) -> None:
    traced, batch = (torch.arange(n)[torch.arange(n) % 3 != 1] if masked else torch.arange(n) for n in (8, examples))
    layout = RowLayout.of([call.tolist() for call in step(traced)], 8)
    owners = step(batch)
    calls = [torch.randn(len(own), 2, dtype=torch.float64) for own in owners]
    (folded,) = fold_calls(calls, examples, layout)
    torch.testing.assert_close(folded, added(calls, owners), rtol=1e-12, atol=1e-12)


def test_an_objective_that_made_only_some_of_the_calls_is_folded_by_these() -> None:
    layout = RowLayout.of([[0, 0, 1, 1], [0, 1]], 2)
    frames, images = torch.randn(6, 2), torch.randn(3, 2)
    torch.testing.assert_close(fold_calls([frames], 3, layout)[0], frames.view(3, 2, 2).sum(1))
    assert torch.equal(fold_calls([images], 3, layout)[0], images)


def test_what_a_mask_chose_is_a_block_beside_the_whole_batch() -> None:
    layout = RowLayout.of([[0, 2, 3], [0, 1, 2, 3]], 4)
    chosen, images = torch.randn(4, 2), torch.randn(6, 2)
    for calls, blocks in (([chosen, images], [chosen, images]), ([chosen], [chosen]), ([images], [images])):
        assert all(map(torch.equal, fold_calls(calls, 6, layout), blocks))


def test_the_calls_of_one_objective_are_told_by_how_many_they_are() -> None:
    layout = RowLayout.of([[0, 2], [3], [0, 2, 3], [0, 1, 2, 3]], 4)
    chosen = torch.randn(6, 2)
    folded = fold_calls([chosen[:3], chosen[3:], chosen], 6, layout)
    torch.testing.assert_close(folded[0], 2 * chosen)


def test_calls_are_not_cut_where_whole_ones_fit() -> None:
    layout = RowLayout.of([[0, 2], [0, 2], [0, 2], [0, 1, 2, 3]], 4)
    chosen = torch.randn(4, 2)
    (folded,) = fold_calls([chosen] * 3, 6, layout)
    torch.testing.assert_close(folded, 3 * chosen)


def test_a_whole_call_is_not_taken_for_chunks() -> None:
    layout = RowLayout.of([[0], [0], [2], [2], [3], [3], [0, 1, 2, 3]], 4)
    chosen = torch.randn(5, 2)
    (folded,) = fold_calls([part for chunk in chosen.chunk(3) for part in (chunk, chunk)], 6, layout)
    torch.testing.assert_close(folded, 2 * chosen)


def test_a_row_without_an_owner_stands_for_itself() -> None:
    rows = torch.randn(5, 2)
    assert torch.equal(fold_calls([rows[:2], rows[2:]], 4, RowLayout(()))[0], rows)
    assert torch.equal(fold_calls([rows], 4)[0], rows)


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        fold_calls([torch.ones(1, 1)], 0)
