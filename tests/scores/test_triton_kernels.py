"""The kernels for CUDA devices against float64: as Python in Triton's interpreter, and on a GPU where there is one.

The interpreter has to be asked for before Triton is imported: it runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_taylor.scores import dot_products as products
from lightning_taylor.scores.dot_products import dot_over_positions, dot_over_weights

ROWS = [(3, 5), (130, 49), (7, 3136), (1, 1), (4, 5000)]
COLUMNS = [(3, 5, 7), (2, 49, 64), (1, 3000, 24), (5, 1, 200), (1, 4096, 3)]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
MAPS = [(3, 5, 4, 6), (16, 100, 1, 1), (2, 24, 7, 7), (1, 1, 1, 1), (2, 3, 2, 3, 2), (3, 4, 5)]
WEIGHTS = [(64, 32, 3, 3), (300, 70, 1, 1), (5, 6, 7, 2), (40, 900), (6, 4, 3)]

INTERPRETED = """
from unittest import mock
from scores.test_triton_kernels import *
from lightning_taylor.scores import triton_kernels as fused

for dtype in TYPES:
    for shape in ROWS:
        assert_dot(fused.dot_rows, shape, dtype)
    for shape in COLUMNS:
        assert_dot(lambda *given: fused.dot_columns(*given).sum(0), shape, dtype)
    with mock.patch.object(fused, "_PROGRAMS", 24):  # as where the device is full: each sums several tiles
        assert_dot(lambda *given: fused.dot_columns(*given).sum(0), (12, 130, 33), dtype)
with mock.patch.object(products, "_kernels_for", return_value=fused):
    for shape in MAPS:
        assert_positions(shape, torch.float32, "cpu")
    for shape in WEIGHTS:
        assert_weights(shape, "cpu")
print("as in float64")
"""


def assert_dot(dot: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
    found = dot(x, grad, *shape)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), (x.double() * grad.double()).sum(1), rtol=1e-5, atol=2e-4)


def layouts(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    plain = torch.randn(shape, device=device).to(dtype)
    reverse = torch.randn(shape[::-1], device=device).to(dtype).permute(*range(len(shape))[::-1])
    found = [plain, plain[..., :1].expand(shape), reverse]
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))
    return found if last is None else [*found, plain.contiguous(memory_format=last)]


def assert_positions(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    coarse = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for x in layouts(shape, dtype, device):
        for grad in layouts(shape, dtype, device):
            for dim in (1, -1):
                over = [d for d in range(1, len(shape)) if d != dim % len(shape)]
                # Layouts that the kernels do not know are summed by torch, which rounds each product.
                fine = x.stride() == grad.stride()
                slack = {"rtol": 1e-4 if fine else coarse, "atol": 1e-3 if fine else coarse * x[0].numel() ** 0.5}
                found = dot_over_positions(x, grad, dim).double()
                torch.testing.assert_close(found, (x.double() * grad.double()).sum(over), **slack)


def assert_weights(shape: tuple[int, ...], device: str) -> None:
    for weight in layouts(shape, torch.float32, device):
        for grad in layouts(shape, torch.float32, device):
            for dim in (0, 1):
                expected = (weight.double() * grad.double()).sum([d for d in range(len(shape)) if d != dim])
                found = dot_over_weights(weight, grad, dim).double()
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_the_kernels_interpreted_equal_float64() -> None:
    pytest.importorskip("triton", reason="needs Triton, which this platform's torch does not bring")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "as in float64", run.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [*MAPS, (128, 64, 56, 56), (16, 1000, 1, 1)])
def test_contributions_on_the_device_equal_float64_in_every_layout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_positions(shape, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", WEIGHTS)
def test_weights_on_the_device_equal_float64_in_every_layout(shape: tuple[int, ...]) -> None:
    assert_weights(shape, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_has_its_kernels_and_they_write_no_product() -> None:
    x, grad = (torch.randn(64, 256, 56, 56, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    assert products._kernels(x.device) is not None
    for last in (torch.contiguous_format, torch.channels_last):
        a, b = (t.contiguous(memory_format=last) for t in (x, grad))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        dot_over_positions(a, b, 1)
        assert torch.cuda.max_memory_allocated() - before < x.numel() * x.element_size() // 10
