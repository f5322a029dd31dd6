"""An operator on lists is the loop that it stands for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_taylor.trace.foreach import is_foreach, run_one_by_one

aten = torch.ops.aten


def some() -> list[Tensor]:
    return [torch.arange(1.0, 4.0), torch.arange(2.0, 4.0)]


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten._foreach_add.List, (some(), some()), {"alpha": 2}),
    (aten._foreach_add.Tensor, (some(), torch.tensor(3.0)), {}),
    (aten._foreach_sub_.List, (some(), some()), {"alpha": 3}),
    (aten._foreach_mul_.Scalar, (some(), 0.5), {}),
    (aten._foreach_mul.ScalarList, (some(), [1, 2]), {}),
    (aten._foreach_div.List, (some(), some()), {}),
    (aten._foreach_lerp_.Scalar, (some(), some(), 0.3), {}),
    (aten._foreach_lerp.List, (some(), some(), some()), {}),
    (aten._foreach_addcmul_.Scalar, (some(), some(), some(), 2), {}),
    (aten._foreach_addcdiv.ScalarList, (some(), some(), some(), [1, 2]), {}),
    (aten._foreach_copy_.default, (some(), some()), {}),
    (aten._foreach_zero_.default, (some(),), {}),
    (aten._foreach_norm.Scalar, (some(), 2), {}),
    (aten._foreach_sqrt.default, (some(),), {}),
]


@pytest.mark.parametrize(("func", "args", "kwargs"), CALLS, ids=[str(func) for func, *_ in CALLS])
def test_a_loop_gives_what_the_operator_gives(func: Any, args: Any, kwargs: Any) -> None:
    assert is_foreach(func)
    one, other = copy.deepcopy(args), copy.deepcopy(args)
    expected, found = func(*one, **kwargs), run_one_by_one(func, other, kwargs)
    assert (expected is None) == (found is None)
    for a, b in zip([*one[0], *(expected or ())], [*other[0], *(found or ())], strict=True):
        torch.testing.assert_close(a, b)


def test_what_a_tensor_has_no_method_for_is_left_to_the_rules() -> None:
    assert not is_foreach(aten.mul.Tensor)
    assert not is_foreach(aten._foreach_zero.default)
