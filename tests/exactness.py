"""The slow, plainly right twin of a removal: the whole network, whose consumers' weights are zero."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Remove
from lightning_taylor.modules.resize import shrink_modules


def masked(model: nn.Module, graph: ChannelGraph, remove: Remove) -> nn.Module:
    """A copy in which every consumer ignores the removed channels."""
    twin = copy.deepcopy(model)
    tensors = dict(twin.named_parameters(remove_duplicate=False)) | dict(twin.named_buffers(remove_duplicate=False))
    for name, index in remove.items():
        for s in graph.groups[name].read:
            rows = s.index[torch.as_tensor(index)].flatten()
            tensors[s.tensor].data.index_fill_(s.dim, rows, 0)
    return twin


def sliced(model: nn.Module, graph: ChannelGraph, remove: Remove) -> nn.Module:
    """A copy in which the channels are gone."""
    twin = copy.deepcopy(model)
    shrink_modules(twin, graph.keep(remove), graph.followers)
    return twin


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All outputs of the evaluation path, as a flat list."""
    with torch.no_grad():
        out = model.eval()(x)
    return list(out.values()) if isinstance(out, dict) else [out] if isinstance(out, Tensor) else list(out)


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference relative to the largest output."""
    assert [t.shape for t in one] == [t.shape for t in other]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-300)) for a, b in zip(one, other, strict=True))
