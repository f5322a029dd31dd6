"""Whole numbers and numbers: a bool is neither, and the error names the argument with its value."""

from __future__ import annotations

import pytest

from lightning_taylor.utilities.checks import check_whole, is_number, is_whole


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [(2, True, True), (2.0, False, True), (True, False, False), ("2", False, False), (None, False, False)],
)
def test_a_bool_is_no_number(value: object, whole: bool, number: bool) -> None:
    assert (is_whole(value), is_number(value)) == (whole, number)


@pytest.mark.parametrize(
    ("value", "least", "says"),
    [(1, 2, "n must be a whole number of at least 2, got 1"), (True, None, "n must be a whole number, got True")],
)
def test_the_error_says_name_bound_and_value(value: object, least: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}$"):
        check_whole("n", value, least)
