from __future__ import annotations

import io

import pytest
import torch

from lightning_taylor.utilities.call_template import call_like, call_template
from lightning_taylor.utilities.calls import ForwardCall


def test_a_call_comes_back_from_a_file_with_the_same_shapes_types_and_plain_values() -> None:
    given = {"sizes": (2, [3, None]), "maps": {"a": torch.ones(2, 4), "mask": torch.ones(2, dtype=torch.bool)}}
    call = ForwardCall("encoder", (torch.ones(2, 3, dtype=torch.float64), [torch.ones(2, 5).long()], "mean"), given)
    file = io.BytesIO()
    torch.save(call_template(call), file)
    file.seek(0)
    found = call_like(torch.load(file, weights_only=True))
    x, (tokens,), mode = found.args
    assert (found.module, x.shape, x.dtype) == ("encoder", (2, 3), torch.float64)
    assert torch.equal(tokens, torch.zeros(2, 5, dtype=torch.long))
    assert (mode, found.kwargs["sizes"]) == ("mean", (2, [3, None]))
    assert found.kwargs["maps"]["a"].shape == (2, 4)
    assert not found.kwargs["maps"]["mask"].any()


@pytest.mark.parametrize("value", [object(), {1: 2}, torch.Size([3]), lambda: None])
def test_a_call_with_more_than_tensors_and_plain_values_is_left_out(value: object) -> None:
    assert call_template(ForwardCall("", (torch.ones(1), value))) is None
