"""Removals after the weights have become others: what is right by chance when training begins shows then."""

from __future__ import annotations

import torch
from exactness import masked, sliced
from torch import Tensor, nn

from lightning_taylor import trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph

__all__ = [
    "prunable",
]


def prunable(model: nn.Module, x: Tensor, share: float = 0.25) -> ChannelGraph:
    """Trace, draw every weight anew, remove a share of every group, and compare with the masked twin in both modes.

    Returns:
        The graph, for what is asked about the groups.
    """
    model, x = model.double(), x.double()
    graph = trace_channels(model, x)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.5 if p.ndim < 2 else (2 / p[0].numel()) ** 0.5))
    remove = graph.sample(share, torch.Generator().manual_seed(1))
    assert all(len(index) for index in remove.values())
    for training in (False, True):
        expected, found = (make(model, graph, remove).train(training)(x) for make in (masked, sliced))
        assert float((expected - found).detach().abs().max() / expected.detach().abs().max()) < 1e-10
    return graph
