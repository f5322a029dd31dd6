"""Whose row is whose: the layouts that one step shows, and what tells no layout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_taylor.graph.row_layout import RowLayout, Stretch

LAYOUTS = {
    "one row each": ([[0, 1, 2, 3]], [Stretch("examples")]),
    "frames": ([[0, 0, 1, 1, 2, 2, 3, 3]], [Stretch("examples", 2)]),
    "views": ([[0, 1, 2, 3, 0, 1, 2, 3]], [Stretch("views", 2)]),
    "called twice": ([[0, 1, 2, 3], [0, 1, 2, 3]], [Stretch("examples"), Stretch("examples")]),
    "chunks": ([[0, 1], [2, 3]], [Stretch("examples")]),
    "called twice in chunks": ([[0, 1], [0, 1], [2, 3], [2, 3]], [Stretch("examples", 1, 2)]),
    "frames in chunks": ([[0, 0, 1], [1, 2, 2], [3, 3]], [Stretch("examples", 2)]),
    "views in chunks": ([[0, 1, 2], [3, 0, 1], [2, 3]], [Stretch("views", 2)]),
    "frames, then images": ([[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3]], [Stretch("examples", 2), Stretch("examples")]),
    "an empty call": ([[], [0, 1, 2, 3]], [Stretch("examples")]),
}


@pytest.mark.parametrize(("calls", "stretches"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_read_off_the_owners_of_the_rows(calls: list[list[int]], stretches: list[Stretch]) -> None:
    layout = RowLayout.of(calls, 4)
    assert [replace(stretch, calls=1) for stretch in layout.stretches] == stretches
    assert not any(stretch.some for stretch in layout.stretches)


def test_a_mask_over_the_batch_leaves_the_layout_of_those_that_come() -> None:
    assert RowLayout.of([[0, 3, 0, 3]], 4) == RowLayout((Stretch("views", 2, some=True),))


def test_two_chunks_of_which_a_mask_leaves_the_same_row_are_no_call_that_repeats() -> None:
    """Of six examples with two views each, in chunks of three rows, the second, fifth and sixth come."""
    layout = RowLayout.of([[1], [1], [4], [4, 5, 5]], 6)
    assert layout.stretches == (Stretch("examples", 2, some=True, calls=4),)


def test_what_a_mask_chose_may_be_read_beside_the_whole_batch() -> None:
    layout = RowLayout.of([[0, 2], [3], [0, 1, 2, 3]], 4)
    assert layout.stretches == (Stretch("examples", some=True, calls=2), Stretch("examples"))


@pytest.mark.parametrize("calls", [[[0, -1, 2, 3]], [[1, 0, 2, 3]], [[0, 1, 2], [1, 3]], [[0], [0], [1]], []])
def test_rows_that_mix_or_come_in_no_order_have_no_layout(calls: list[list[int]]) -> None:
    assert RowLayout.of(calls, 4).stretches == ()
