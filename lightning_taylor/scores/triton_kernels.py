"""The product of two tensors, summed over positions, in one reading of both: Triton kernels for CUDA devices.

What the scores cost beyond this reading is memory that need not be touched: a product that is written and read again
doubles the bytes. Sums are taken in float32 whatever the operands are, always in the same order, without atomic
additions: the same bits every time.

Why not ``torch.compile``: it would compile anew for every layer after every event. These kernels are compiled once per
type and tile.

Shape legend: B = leading entries, R = entries that are summed, W = entries that stay, S = parts that one sum is split
into where there would not be work for the whole device. A tile has at most 2,048 entries.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "dot_columns",
    "dot_rows",
]

_TILE = 2048

_PROGRAMS = 400  # three for every multiprocessor of the largest devices, enough loads in flight for their bandwidth


def dot_rows(x: Tensor, grad: Tensor, rows: int, length: int) -> Tensor:
    """Dot products of rows, ``sum_r x_br g_br``.

    Args:
        x: B ``rows`` of R = ``length`` entries, one after the other in memory whatever the shape; float32, bfloat16 or
            float16, on a CUDA device; read only.
        grad: likewise.
        rows: B.
        length: R.

    Returns:
        Shape ``(B,)``, float32.
    """
    out_B = torch.empty(rows, dtype=torch.float32, device=x.device)
    across = min(_TILE, triton.next_power_of_2(length))
    down = _TILE // across
    tile: Any = {"DOWN": down, "ACROSS": across}
    with _on(x):
        _rows_kernel[(triton.cdiv(rows, down),)](x, grad, out_B, rows, length, **tile)
    return out_B


def dot_columns(x: Tensor, grad: Tensor, batch: int, length: int, width: int) -> Tensor:
    """Parts of the dot products of columns, ``sum_r x_brw g_brw``.

    Args:
        x: B = ``batch`` blocks of R = ``length`` rows of W = ``width`` entries, one after the other in memory whatever
            the shape; float32, bfloat16 or float16, on a CUDA device; read only.
        grad: likewise.
        batch: B.
        length: R.
        width: W.

    Returns:
        Shape ``(S, B, W)``, float32: to be summed over the S parts.
    """
    across = min(128, triton.next_power_of_2(width))
    down = _TILE // across
    blocks, tiles = triton.cdiv(width, across), triton.cdiv(length, down)
    split = max(1, min(tiles, _PROGRAMS // (batch * blocks)))
    steps = triton.cdiv(tiles, split)
    split = triton.cdiv(tiles, steps)
    out_SBW = torch.empty(split, batch, width, dtype=torch.float32, device=x.device)
    tile: Any = {"DOWN": down, "ACROSS": across}
    with _on(x):
        _columns_kernel[(batch * blocks, split)](x, grad, out_SBW, batch, length, width, blocks, steps, **tile)
    return out_SBW


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    at_home = not x.is_cuda or x.device.index == torch.cuda.current_device()
    return nullcontext() if at_home else torch.cuda.device_of(x)


@triton.jit(do_not_specialize=["rows"])
def _rows_kernel(x, grad, out, rows, length, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * DOWN + tl.arange(0, DOWN)
    total = tl.zeros((DOWN, ACROSS), tl.float32)
    for start in range(0, length, ACROSS):
        column = start + tl.arange(0, ACROSS)
        at = row[:, None] * length + column[None, :]
        inside = (row[:, None] < rows) & (column[None, :] < length)
        a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        total += a * b
    tl.store(out + row, tl.sum(total, 1), mask=row < rows)


@triton.jit(do_not_specialize=["batch", "length", "blocks", "steps"])
def _columns_kernel(
    x, grad, out, batch, length, width, blocks, steps, DOWN: tl.constexpr, ACROSS: tl.constexpr
):  # fmt: skip
    entry = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * ACROSS + tl.arange(0, ACROSS)
    part = tl.program_id(1)
    first = part * steps * DOWN
    total = tl.zeros((DOWN, ACROSS), tl.float32)
    for step in range(0, steps):
        row = first + step * DOWN + tl.arange(0, DOWN)
        at = (entry * length + row[:, None]) * width + column[None, :]
        inside = (row[:, None] < length) & (column[None, :] < width)
        a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        total += a * b
    tl.store(out + (part * batch + entry) * width + column, tl.sum(total, 0), mask=column < width)
