"""Hooks on all layers that read a channel, and what turns their findings into scores per channel.

Shape legend: C = channels of all groups, M = entries that one channel owns in a layer's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.modules.attention import hand_queries_to
from lightning_taylor.modules.attention_registry import headwise, projection_of
from lightning_taylor.modules.attributes import follow_shapes
from lightning_taylor.modules.weight_reads import Tap
from lightning_taylor.scores.channel_matrix import Block, ChannelMatrix
from lightning_taylor.scores.consumers import Consumer, find_consumers
from lightning_taylor.utilities.hooks import InputHook

__all__ = [
    "ConsumerHooks",
    "OpenHeads",
]


H = TypeVar("H", bound=InputHook)


class ConsumerHooks(Generic[H]):
    """One forward pre-hook on each layer that reads a channel of the graph, until it is closed.

    Args:
        model: gets the hooks; its attention modules are opened up meanwhile.
        graph: its channel graph at the present widths.
        hook: makes the hook of a layer.

    Attributes:
        consumers: group name -> the layers that read it.
        unscorable: group name -> why no hook can see it.
        by_layer: layer name -> its hook.
        device: of the layers' weights.
        double: whether one of them is in double precision.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, hook: Callable[[Consumer], H]) -> None:
        self._graph = graph
        self.consumers, self.unscorable = find_consumers(model, graph)
        self._layers = {consumer.name: consumer for layers in self.consumers.values() for consumer in layers}
        weights = [p for consumer in self._layers.values() for p in consumer.module.parameters(recurse=False)]
        self.device = weights[0].device if weights else torch.device("cpu")
        self.double = any(w.dtype == torch.float64 for w in weights)
        self._heads = OpenHeads(model, self._layers)
        self.by_layer = {name: hook(consumer) for name, consumer in self._layers.items()}
        self._handles: list[RemovableHandle | Tap] = [
            consumer.watch(self.by_layer[name])  # type: ignore[arg-type]
            for name, consumer in self._layers.items()
        ]

    def channel_matrix(self, dtype: torch.dtype | None = None, *, mean: bool = False) -> ChannelMatrix[str]:
        """Build what adds up the entries of all layers into channels.

        Args:
            dtype: of the sums; by default as precise as the weights, at least single.
            mean: of the M entries of a channel (a flattened map's positions), instead of their sum.
        """
        return ChannelMatrix(
            self._graph,
            {name: consumer.width for name, consumer in self._layers.items()},
            [
                Block(group, consumer.name, consumer.index, 1 / consumer.index.shape[1] if mean else 1.0)
                for group, layers in self.consumers.items()
                for consumer in layers
            ],
            dtype=dtype or (torch.float64 if self.double else torch.float32),
            device=self.device,
        )

    def pause(self) -> None:
        """Leave the passes alone until ``resume``."""
        for hook in self.by_layer.values():
            hook.paused = True

    def resume(self) -> None:
        """Watch the passes again."""
        for hook in self.by_layer.values():
            hook.paused = False

    def close(self) -> None:
        """Take the hooks off, and let attention modules run their own code again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._heads.close()


@final
class OpenHeads:
    """Lets attention modules run their headwise class until it is closed.

    Args:
        model: changed in place; values agree to rounding.
        watched: the layers that are to be hooked, by name; modules around other layers stay as they are.

    Example:
        >>> model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
        >>> heads = OpenHeads(model, {"attention.out_proj": Consumer("attention.out_proj", nn.Identity(), 8, None)})
        >>> type(model["attention"]).__name__
        'PrunedMultiheadAttention'
        >>> heads.close()
        >>> type(model["attention"]).__name__
        'MultiheadAttention'
    """

    def __init__(self, model: nn.Module, watched: Mapping[str, Consumer]) -> None:
        self._opened: list[nn.Module] = []
        for name, module in model.named_modules():
            own_class, projection = headwise(module), projection_of(module)
            if own_class is not None and f"{name}.{projection}".lstrip(".") in watched:
                self._opened.append(module)
                module.__class__ = own_class
            if (queries := watched.get(f"{name}:queries")) is not None:
                hand_queries_to(module, queries.module)

    def close(self) -> None:
        """Give every module its class back, unless it has lost heads meanwhile."""
        for module in self._opened:
            hand_queries_to(module, None)
            follow_shapes(module)
        self._opened.clear()
