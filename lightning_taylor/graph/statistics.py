"""Normalisations whose statistics run over the channels that are kept, and over no others.

A LayerNorm that loses channels averages over fewer: what it makes of the others changes, and no network with zeros in
their place computes the same. It is the right network all the same if it equals the one whose statistics leave the
removed channels out. That one is run here.

Shape legend: N = examples, C = channels, G = groups of channels, K = channels of each group, R = the positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_taylor.graph.averages import AVERAGES

__all__ = ["KeptStatistics"]

_WEIGHT_AT = {"native_layer_norm": 2, "native_group_norm": 1, "_fused_rms_norm": 2}  # among the arguments


class KeptStatistics(TorchDispatchMode):
    """While it is on, normalisations ignore the channels that are to go.

    Args:
        kept: id of a normalisation's weight -> the channels that stay, int64.
        averaged: number of a call among those of ``AVERAGES`` -> (dimension from the end, whether each entry along it
            stays), for normalisations that are written out.
    """

    def __init__(self, kept: Mapping[int, Tensor], averaged: Mapping[int, tuple[int, Tensor]]) -> None:
        super().__init__()
        self._kept = kept
        self._averaged = averaged
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, or ours in its place."""
        name = func.overloadpacket.__name__
        if name in AVERAGES:
            args = self._left_out(*args)
        out = func(*args, **(kwargs or {}))
        kept = self._kept.get(id(args[_WEIGHT_AT[name]])) if name in _WEIGHT_AT else None
        return out if kept is None else (_NORMS[name](kept, *args), *out[1:])

    def _left_out(self, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        """An average's arguments, without the entries that are to go."""
        dim, stays_C = self._averaged.get(self._count, (0, None))
        self._count += 1
        if stays_C is None or -dim > x.ndim or x.shape[dim] != len(stays_C):
            return x, *rest
        return x.index_select(dim, stays_C.nonzero().flatten().to(x.device)), *rest


def _layer_norm(kept: Tensor, x: Tensor, shape: Any, weight_C: Tensor, bias_C: Tensor | None, eps: float) -> Tensor:
    some = x.index_select(-1, kept.to(x.device))
    variance, mean = torch.var_mean(some, -1, correction=0, keepdim=True)
    out = (x - mean) * (variance + eps).rsqrt() * weight_C
    return out if bias_C is None else out + bias_C


def _rms_norm(kept: Tensor, x: Tensor, shape: Any, weight_C: Tensor, eps: float | None) -> Tensor:
    mean = x.index_select(-1, kept.to(x.device)).square().mean(-1, keepdim=True)
    return x * (mean + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt() * weight_C


def _group_norm(
    kept: Tensor, x: Tensor, weight_C: Tensor, bias_C: Tensor | None, n: int, c: int, r: int, groups: int, eps: float
) -> Tensor:
    mask_GK = torch.zeros(c, dtype=x.dtype, device=x.device).index_fill_(0, kept.to(x.device), 1).view(1, groups, -1, 1)
    x_NGKR = x.reshape(n, groups, c // groups, r)
    count_G = (mask_GK.sum((2, 3), keepdim=True) * r).clamp(min=1)
    mean_G = (x_NGKR * mask_GK).sum((2, 3), keepdim=True) / count_G
    variance_G = ((x_NGKR - mean_G).square() * mask_GK).sum((2, 3), keepdim=True) / count_G
    out = ((x_NGKR - mean_G) * (variance_G + eps).rsqrt()).view_as(x)
    along = [1, -1] + [1] * (x.ndim - 2)
    out = out * weight_C.view(along)
    return out if bias_C is None else out + bias_C.view(along)


_NORMS = {"native_layer_norm": _layer_norm, "native_group_norm": _group_norm, "_fused_rms_norm": _rms_norm}
