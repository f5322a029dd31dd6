"""The kernels for CUDA devices against float64: as Python in Triton's interpreter, and on a GPU where there is one.

The interpreter has to be asked for before Triton is imported: it runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lightning_taylor.scores.products import dot_over_positions, dot_over_weights

ROWS = [(3, 5), (7, 49), (130, 3136), (1, 1), (4, 5000)]
COLUMNS = [(3, 5, 7), (2, 49, 64), (1, 3000, 24), (5, 1, 200), (1, 4096, 3), (40, 130, 33)]
TYPES = [torch.float32, torch.bfloat16, torch.float16]

INTERPRETED = """
import contextlib
import torch
from scores.test_fused import COLUMNS, ROWS, TYPES, assert_dot
from lightning_taylor.scores.fused import dot_columns, dot_rows

torch.cuda.device_of = lambda tensor: contextlib.nullcontext()
for dtype in TYPES:
    for shape in ROWS:
        assert_dot(dot_rows, shape, dtype, "cpu")
    for shape in COLUMNS:
        assert_dot(dot_columns, shape, dtype, "cpu")
print("as in float64")
"""


def assert_dot(dot: object, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x, grad = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    found = dot(x, grad)  # type: ignore[operator]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), (x.double() * grad.double()).sum(1), rtol=1e-5, atol=2e-4)


def test_the_kernels_interpreted_equal_float64() -> None:
    pytest.importorskip("triton", reason="needs Triton, which this platform's torch does not bring")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "as in float64", run.stderr


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    plain = torch.randn(shape, device="cuda").to(dtype)
    found = [plain, plain[..., :1].expand(shape), torch.randn(shape[::-1], device="cuda").to(dtype).permute(3, 2, 1, 0)]
    return [*found, plain.contiguous(memory_format=torch.channels_last)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (128, 64, 56, 56), (16, 1000, 1, 1), (2, 24, 7, 7), (1, 1, 1, 1)])
def test_contributions_on_the_device_equal_float64_in_every_layout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    coarse = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for x in layouts(shape, dtype):
        for grad in layouts(shape, dtype):
            # Layouts that the kernels do not know are summed by torch, which rounds each product.
            same = x.stride() == grad.stride()
            slack = {"rtol": 1e-4 if same else coarse, "atol": 1e-3 if same else coarse * shape[2] * shape[3]}
            for dim in (1, -1):
                over = (2, 3) if dim == 1 else (1, 2)
                found = dot_over_positions(x, grad, dim).double()
                torch.testing.assert_close(found, (x.double() * grad.double()).sum(over), **slack)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (300, 70, 1, 1), (5, 6, 7, 2)])
@pytest.mark.parametrize("dim", [0, 1])
def test_weights_on_the_device_equal_float64_in_every_layout(shape: tuple[int, ...], dim: int) -> None:
    for weight in layouts(shape, torch.float32):
        for grad in layouts(shape, torch.float32):
            expected = (weight.double() * grad.double()).sum([d for d in range(4) if d != dim])
            torch.testing.assert_close(dot_over_weights(weight, grad, dim).double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_has_its_kernels_and_they_write_no_product() -> None:
    from lightning_taylor.scores import products

    x, grad = (torch.randn(64, 256, 56, 56, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    assert products._kernels(x.device) is not None
    for of in (lambda t: t, lambda t: t.contiguous(memory_format=torch.channels_last)):
        a, b = of(x), of(grad)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        dot_over_positions(a, b, 1)
        assert torch.cuda.max_memory_allocated() - before < x.numel() * x.element_size() // 10
