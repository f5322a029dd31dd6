from __future__ import annotations

import math

import pytest
import torch

from lightning_taylor.export.comparison import Rounding, rounding_of
from lightning_taylor.export.verified_write import ExportError


def test_the_error_is_of_all_batches_together_and_the_agreement_of_those_that_count() -> None:
    expected = [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 5.0]]), torch.tensor([[0.01, 0.0]])]
    found = [e.clone() for e in expected]
    found[0][0, 0] = 4.5  # another top class
    found[2][0] = found[2][0].flip(0)  # nothing in the sum; and this batch repeats examples
    absolute, said = rounding_of(expected, found, [1, 1], 0.5)
    assert absolute == 1.5
    assert said.relative_difference == 1.5 / 5
    assert said.relative_error == pytest.approx(math.sqrt((1.5**2 + 2 * 0.01**2) / (50 + 0.01**2)))
    assert (said.agreement, said.examples) == (0.5, 2)


def test_an_error_of_just_the_tolerance_is_kept_and_any_larger_one_is_not() -> None:
    expected = torch.full((4, 3), 2.0)
    assert rounding_of([expected], [expected * 1.25], [4], 0.25)[1].relative_error == 0.25
    with pytest.raises(ExportError, match=r"net differs .* by 26.00% \(root mean square.*25.00% is allowed"):
        rounding_of([expected], [expected * 1.26], [4], 0.25, "net")
    for nonsense in (expected * 0, -expected, expected.flip(0) * 3):
        with pytest.raises(ExportError, match="differs from the model"):
            rounding_of([expected], [nonsense], [4], 0.25)


def test_zeros_have_to_stay_near_zero_and_numbers_finite() -> None:
    zeros = torch.zeros(2, 3)
    assert rounding_of([zeros], [zeros + 0.2], [2], 0.25)[1].relative_error == pytest.approx(0.2)
    with pytest.raises(ExportError, match=r"differs from the model by 30\.00%"):
        rounding_of([zeros], [zeros + 0.3], [2], 0.25)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ExportError, match="NaN or infinity"):
            rounding_of([zeros], [zeros + wrong], [2], 9.0)
    assert rounding_of([zeros + math.inf], [zeros + math.inf], [2], 0.1)[0] == 0


def test_a_share_of_the_whole_numbers_may_differ() -> None:
    classes = torch.arange(10)
    other = classes.clone()
    other[0] = 5
    assert rounding_of([classes], [other], [10], 0.1) == (0.0, Rounding(0.0, 0.0, None, 10))
    with pytest.raises(ExportError, match=r"differs from the model by 10.00% \(of whole numbers\) where 9.00%"):
        rounding_of([classes], [other], [10], 0.09)


def test_only_rows_of_several_numbers_have_a_top_class() -> None:
    for other in (torch.rand(4), torch.rand(4, 1), torch.rand(4, 2, 3)):
        assert rounding_of([other], [other], [4], 0.1)[1].agreement is None
    rows = torch.rand(4, 3)
    assert rounding_of([{"a": other, "b": rows}], [[other, rows]], [4], 0.1)[1].agreement == 1


def test_another_shape_is_refused() -> None:
    with pytest.raises(ExportError, match="gives outputs of shapes"):
        rounding_of([torch.rand(2, 3)], [torch.rand(2, 2)], [2], 9.0)
