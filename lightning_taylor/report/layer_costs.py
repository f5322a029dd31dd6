"""What each layer costs, when it was traced and now: FLOPs of its operations, parameters of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Operation

__all__ = ["LayerCost", "flops_now", "layer_costs"]


@dataclass(frozen=True)
class LayerCost:
    """FLOPs per example (2 per multiply-add) and parameters of a layer."""

    flops: float = 0.0
    params: int = 0


def layer_costs(graph: ChannelGraph) -> dict[str, tuple[LayerCost, LayerCost]]:
    """Return the cost of every channel-carrying layer when it was traced, and now.

    FLOPs of attention kernels and the like belong to no layer; a bias and a norm of its own count with their layer.
    """
    flops = {layer: [0.0, 0.0] for layer in graph.layers}
    for operation in graph.operations:
        if operation.module in flops:
            flops[operation.module][0] += operation.flops
            flops[operation.module][1] += flops_now(operation, graph)
    return {
        layer: (LayerCost(before, sum(_sizes(graph, layer, 0))), LayerCost(now, sum(_sizes(graph, layer, 1))))
        for layer, (before, now) in flops.items()
    }


def flops_now(operation: Operation, graph: ChannelGraph) -> float:
    """Return what an operation costs at the present widths."""
    ratio = math.prod(graph.width((tensor, dim)) / graph.dense[tensor][dim] for tensor, dim in operation.axes)
    return operation.flops * ratio


def _sizes(graph: ChannelGraph, layer: str, when: int) -> Iterator[int]:
    for name, shape in (graph.dense, graph.shapes)[when].items():
        if name in graph.parameters and name.rpartition(".")[0] == layer:
            yield math.prod(shape)
