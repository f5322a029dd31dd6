"""Sums of products in any layout, with as little memory traffic as the device allows.

On a CUDA device the kernels of ``scores.fused`` read both operands once and write nothing else; everywhere else, and
for layouts and types that they do not know, torch's own operators do the same sums.

Shape legend: L = leading entries as the layer saw them, I = input channels of a layer (or entries of the weight
dimension that reads them), O = its outputs, P = positions, K = kernel elements.
"""

from __future__ import annotations

from functools import cache
from math import prod
from types import ModuleType

import torch
from torch import Tensor

__all__ = [
    "dot_over_positions",
    "dot_over_weights",
]


# Entries of one product, per step of a reduction: on a CPU half a megabyte, which stays in the cache; on an accelerator
# enough to fill it.
_CHUNK_CPU = 2**17

_CHUNK_ACCELERATOR = 2**24

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def dot_over_positions(x: Tensor, grad: Tensor, dim: int) -> Tensor:
    r"""For each entry and channel the sum over positions, :math:`v_{li} = \sum_p x_{lip}\, g_{lip}`.

    Args:
        x: shape ``(L, I, *P)`` with ``dim=1`` or ``(L, *P, I)`` with ``dim=-1``, with at least one position dimension.
        grad: same shape.
        dim: the dimension that carries the channels.

    Returns:
        Shape ``(L, I)``, float32, or float64 for float64 inputs.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    over = [d for d in range(1, x.ndim) if d != dim % x.ndim]
    if torch.compiler.is_compiling():
        return (x.to(dtype) * grad.to(dtype)).sum(over)  # one kernel in the end, or part of another
    kernels = _kernels_for(x)
    if kernels and (fused_LI := _fused_positions(kernels, x, grad, dim)) is not None:
        return fused_LI
    if x.dtype == torch.float16:
        # Under a GradScaler the gradients are near the end of float16's range, and their sums beyond it.
        rows = max(1, _CHUNK_ACCELERATOR // max(1, x[:1].numel()))
        pairs = zip(x.split(rows), grad.split(rows), strict=True)
        return torch.cat([a.to(dtype, copy=True).mul_(b).sum(over) for a, b in pairs])
    if dim == 1 and x.is_contiguous() and grad.is_contiguous():
        # One batched dot product: no product of the size of the activation is ever written.
        return torch.linalg.vecdot(x.flatten(2), grad.flatten(2)).to(dtype)
    # vecdot would copy both operands of any other layout; the product is one copy, and freed at once.
    return (x * grad).sum(over, dtype=dtype)


def dot_over_weights(weight: Tensor, grad: Tensor, dim: int) -> Tensor:
    r"""For each entry of one dimension the sum over all others, :math:`v_i = \sum_{o,k} w_{oik}\, g_{oik}`.

    Args:
        weight: shape ``(O, I, *K)`` with ``dim=1``, ``(I, O, *K)`` or ``(I,)`` with ``dim=0``.
        grad: same shape.
        dim: the dimension that stays.

    Returns:
        Shape ``(I,)``, float32, or float64 for float64 inputs.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if weight.ndim == 1:
        return weight.to(dtype) * grad
    kernels = _kernels_for(weight)
    if kernels and (fused_I := _fused_weights(kernels, weight, grad, dim)) is not None:
        return fused_I
    if dim == 0:
        return _rows(weight, grad, dtype)
    # The whole product of a large linear layer (25088 x 4096) is 411 MB of fresh memory. Slabs are multiplied and added
    # into one of them, and no product is ever written.
    chunk = _CHUNK_CPU if weight.device.type == "cpu" else _CHUNK_ACCELERATOR
    slab = max(1, chunk // max(1, prod(weight.shape[1:])))
    total = torch.zeros_like(weight[:slab], dtype=dtype)
    for w, g in zip(weight.split(slab), grad.split(slab), strict=True):
        total[: len(w)].addcmul_(w.to(dtype), g.to(dtype))
    return total.sum([d for d in range(total.ndim) if d != dim])


def _rows(weight: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the product over everything but dimension 0."""
    if weight.is_contiguous() and grad.is_contiguous() and weight.dtype != torch.float16:
        return torch.linalg.vecdot(weight.flatten(1), grad.flatten(1)).to(dtype)
    return (weight.to(dtype) * grad).sum(list(range(1, weight.ndim)))


def _fused_positions(kernels: ModuleType, x: Tensor, grad: Tensor, dim: int) -> Tensor | None:
    """As ``dot_over_positions``; None for a layout that would have to be copied."""
    length, width = x.shape[0], x.shape[dim]
    positions = x.numel() // (length * width)
    last = torch.contiguous_format if dim != 1 else _CHANNELS_LAST.get(x.ndim)
    if last is not None and x.is_contiguous(memory_format=last) and grad.is_contiguous(memory_format=last):
        return _added(kernels.dot_columns(x, grad, length, positions, width))
    if dim == 1 and x.is_contiguous() and grad.is_contiguous():
        return kernels.dot_rows(x, grad, length * width, positions).view(length, width)
    return None


def _fused_weights(kernels: ModuleType, weight: Tensor, grad: Tensor, dim: int) -> Tensor | None:
    """As ``dot_over_weights``; None for a layout that would have to be copied."""
    first, second = weight.shape[:2]
    kernel = weight.numel() // (first * second)
    plain = weight.is_contiguous() and grad.is_contiguous()
    last = _CHANNELS_LAST.get(weight.ndim, torch.contiguous_format)
    if not plain and not (weight.is_contiguous(memory_format=last) and grad.is_contiguous(memory_format=last)):
        return None
    if dim == 0:
        return kernels.dot_rows(weight, grad, first, second * kernel)
    if not plain:
        return _added(kernels.dot_columns(weight, grad, 1, first * kernel, second))[0]
    return kernels.dot_columns(weight, grad, 1, first, second * kernel).view(-1, second, kernel).sum((0, 2))


def _added(part_SBW: Tensor) -> Tensor:
    return part_SBW[0] if len(part_SBW) == 1 else part_SBW.sum(0)


def _kernels_for(x: Tensor) -> ModuleType | None:
    """The module with the kernels, where they run."""
    fusible = x.is_cuda and x.dtype in (torch.float32, torch.bfloat16, torch.float16) and x.numel() > 0
    return _kernels(x.device) if fusible else None


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """None if Triton is missing, or cannot build for this device (it needs a C compiler)."""
    try:
        from lightning_taylor.scores import triton_kernels as fused

        fused.dot_rows(torch.ones(1, device=device), torch.ones(1, device=device), 1, 1)
    except Exception:
        return None
    return fused
