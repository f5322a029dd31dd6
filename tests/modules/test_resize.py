"""Cut tensors keep everything but their size."""

from __future__ import annotations

from itertools import permutations
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.modules import resize
from lightning_taylor.modules.resize import resized, shrink_modules


@st.composite
def tensors_and_keeps(draw: st.DrawFn) -> tuple[Tensor, dict[int, Tensor]]:
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    order = draw(st.permutations(range(len(shape))))
    tensor = torch.arange(float(np.prod(shape))).reshape([shape[d] for d in order])
    tensor = tensor.permute([order.index(d) for d in range(len(shape))])
    dims = draw(st.sets(st.integers(0, len(shape) - 1)))
    keep = {d: sorted(draw(st.sets(st.integers(0, shape[d] - 1), min_size=1))) for d in dims}
    return tensor, {d: torch.tensor(index) for d, index in keep.items()}


@pytest.mark.slow
@given(tensors_and_keeps())
@settings(max_examples=200, deadline=None)
def test_resized_picks_what_numpy_picks_into_a_dense_storage_of_its_own(case: tuple[Tensor, dict[int, Tensor]]) -> None:
    tensor, keep = case
    index = [keep[d].numpy() if d in keep else np.arange(n) for d, n in enumerate(tensor.shape)]
    small = resized(tensor, keep)
    np.testing.assert_array_equal(small.numpy(), tensor.numpy()[np.ix_(*index)])
    assert small.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    assert small.untyped_storage().nbytes() == small.numel() * 4
    assert small._base is None


@given(tensors_and_keeps())
@settings(max_examples=200, deadline=None)
def test_resized_keeps_the_order_of_the_dimensions_in_memory(case: tuple[Tensor, dict[int, Tensor]]) -> None:
    tensor, keep = case
    small = resized(tensor, keep)
    long = [d for d in range(tensor.ndim) if small.shape[d] > 1]
    for a, b in permutations(long, 2):
        assert (small.stride(a) > small.stride(b)) == (tensor.stride(a) > tensor.stride(b))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4, 1, 1), (6, 1, 3, 3), (6, 4, 1, 3), (6, 4, 3, 1)])
@pytest.mark.parametrize("keep", [{0: [0, 2]}, {1: [0]}, {0: [1, 3, 5], 1: [0]}], ids=str)
def test_ambiguous_weights_keep_the_format_that_their_strides_spell(
    memory_format: torch.memory_format, shape: tuple[int, ...], keep: dict[int, list[int]]
) -> None:
    weight = torch.empty(shape, memory_format=memory_format)
    small = resized(weight, {d: torch.tensor(i) for d, i in keep.items()})
    assert small.stride() == torch.empty(small.shape, memory_format=memory_format).stride()


def test_three_dimensional_weights_stay_channels_last() -> None:
    weight = torch.randn(6, 4, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    small = resized(weight, {0: torch.tensor([0, 2]), 1: torch.tensor([1, 3])})
    assert small.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(small, weight[[0, 2]][:, [1, 3]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
def test_resized_keeps_the_dtype_and_no_history(dtype: torch.dtype) -> None:
    tensor = torch.ones(4, 3).to(dtype).requires_grad_(dtype.is_floating_point)
    small = resized(tensor, {0: torch.tensor([1])})
    assert (small.dtype, small.requires_grad) == (dtype, False)


def test_resized_makes_ordinary_tensors_in_inference_mode() -> None:
    with torch.inference_mode():
        assert not resized(torch.ones(3), {0: torch.tensor([1])}).is_inference()


def test_shared_modules_and_tied_parameters_are_cut_once_and_all_their_owners_follow() -> None:
    shared = nn.Conv2d(4, 4, 1, groups=4, bias=False)
    tied = nn.Conv2d(4, 4, 1, groups=4, bias=False)
    tied.weight = shared.weight
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"again": shared}), "c": tied})
    shrink_modules(model, {("c.weight", 0): torch.tensor([0, 1, 3])})
    assert shared.weight is tied.weight
    assert [(m.in_channels, m.out_channels, m.groups) for m in (shared, tied)] == [(3, 3, 3)] * 2


def test_two_names_of_one_tensor_have_to_agree() -> None:
    a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    b.weight = a.weight
    keep = {("0.weight", 0): torch.tensor([0, 1]), ("1.weight", 0): torch.tensor([0, 2])}
    with pytest.raises(UncoupledChannelsError, match=r"'1.weight' is the same tensor as '0.weight'"):
        shrink_modules(nn.Sequential(a, b), keep)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(UncoupledChannelsError, match=r"'bias'.*trace it again"):
        shrink_modules(nn.Linear(2, 2, bias=False), {("bias", 0): torch.tensor([0])})


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_large_tensor_is_cut_slab_by_slab_to_the_same(layout: torch.memory_format) -> None:
    tensor = torch.randn(7, 5, 3, 2).to(memory_format=layout)
    keep = {0: torch.tensor([0, 2, 3, 6]), 1: torch.tensor([1, 4]), 2: torch.tensor([0, 2])}
    whole = resized(tensor, keep)
    with mock.patch.multiple(resize, _LARGE=0, _SLAB=13):
        found = resized(tensor, keep)
    assert torch.equal(found, whole)
    assert torch.equal(found, tensor[keep[0]][:, keep[1]][:, :, keep[2]])
    assert found.stride() == whole.stride()
