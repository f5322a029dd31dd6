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

__all__ = ["KeptStatistics"]

_WEIGHT_AT = {"native_layer_norm": 2, "native_group_norm": 1}  # among the operator's arguments


class KeptStatistics(TorchDispatchMode):
    """While it is on, normalisations ignore the channels that are to go.

    Args:
        kept: id of a normalisation's weight -> the channels that stay, int64.
    """

    def __init__(self, kept: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, or ours in its place."""
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        kept = self._kept.get(id(args[_WEIGHT_AT[name]])) if name in _WEIGHT_AT else None
        if kept is None:
            return out
        return (_layer_norm if name == "native_layer_norm" else _group_norm)(kept, *args), *out[1:]


def _layer_norm(kept: Tensor, x: Tensor, shape: Any, weight_C: Tensor, bias_C: Tensor | None, eps: float) -> Tensor:
    some = x.index_select(-1, kept.to(x.device))
    variance, mean = torch.var_mean(some, -1, correction=0, keepdim=True)
    out = (x - mean) * (variance + eps).rsqrt() * weight_C
    return out if bias_C is None else out + bias_C


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
