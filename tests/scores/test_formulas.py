"""The formulas, in every layout, against the one line that says what they mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_taylor.scores.formulas import batch_contributions, fold_examples, taylor_contributions, weight_magnitude


def _layouts(shape: tuple[int, ...]) -> dict[str, Tensor]:
    plain = torch.randn(shape, dtype=torch.float64)
    found = {
        "plain": plain,
        "transposed": torch.randn(shape[::-1], dtype=torch.float64).permute(*range(len(shape))[::-1]),
    }
    found["expanded"] = plain[..., :1].expand(shape)
    if len(shape) == 4:
        found["channels last"] = plain.to(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 3, 7), (4, 5), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("dim", [1, -1])
def test_contributions_are_the_sum_over_positions_in_every_layout(shape: tuple[int, ...], dim: int) -> None:
    for x in _layouts(shape).values():
        for grad in _layouts(shape).values():
            product_LIP = (x * grad).movedim(dim, 1).reshape(shape[0], x.shape[dim], -1)
            torch.testing.assert_close(taylor_contributions(x, grad, dim=dim), product_LIP.sum(2))
            torch.testing.assert_close(taylor_contributions(x, grad, dim=dim, positions="mean"), product_LIP.mean(2))


@pytest.mark.parametrize("shape", [(3, 40_000), (300, 7, 3, 3), (2, 5000, 3, 3), (6, 4), (40, 900, 3), (1, 3)])
@pytest.mark.parametrize("dim", [0, 1])
def test_batch_contributions_are_the_sum_over_all_other_dimensions(shape: tuple[int, ...], dim: int) -> None:
    for weight in _layouts(shape).values():
        grad = torch.randn(shape, dtype=torch.float64)
        expected = (weight * grad).sum([d for d in range(len(shape)) if d != dim])
        torch.testing.assert_close(batch_contributions(weight, grad, dim=dim), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_gathered_in_float32(dtype: torch.dtype) -> None:
    x, grad = torch.rand(4, 8, 6, 6).to(dtype), torch.rand(4, 8, 6, 6).to(dtype)
    exact = (x.double() * grad.double()).sum((2, 3))
    for found in (
        taylor_contributions(x, grad, dim=1),
        taylor_contributions(x.contiguous(memory_format=torch.channels_last), grad, dim=1),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=0.01, atol=0)
    found = batch_contributions(x, grad, dim=1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact.sum(0), rtol=0.01, atol=0)


def test_folding_adds_up_what_belongs_to_an_example_and_spreads_what_belongs_to_none() -> None:
    contribution_LI = torch.randn(6, 5, dtype=torch.float64)
    assert fold_examples(contribution_LI, 6) is contribution_LI
    torch.testing.assert_close(fold_examples(contribution_LI, 2)[1], contribution_LI[3:].sum(0))
    spread = fold_examples(contribution_LI, 4)
    torch.testing.assert_close(spread, (contribution_LI.sum(0) / 4).expand(4, 5))
    with pytest.raises(ValueError, match="got 0"):
        fold_examples(contribution_LI, 0)


def test_shapes_that_differ_are_named() -> None:
    for formula in (taylor_contributions, batch_contributions):
        with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
            formula(torch.ones(2, 3), torch.ones(3, 2), dim=1)


@pytest.mark.parametrize("dim", [0, 1])
def test_magnitude_is_the_mean_square_of_the_kernel(dim: int) -> None:
    weight = torch.randn(4, 5, 3, 3)
    expected = torch.stack([kernel.square().mean() for kernel in weight.unbind(dim)])
    torch.testing.assert_close(weight_magnitude(weight, dim=dim), expected)
