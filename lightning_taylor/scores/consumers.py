"""The layers that read a group's channels, as far as a hook can watch them.

Queries are read by no weight: they are watched where they are made. The change of the loss when a product goes is the
derivative by one of its sides; that by the other is the same number.

Shape legend: C = channels of a group, M = entries that one channel owns in a layer's input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role, Slice
from lightning_taylor.modules.attention_registry import hands_queries_on, headwise, is_stock, projection_of
from lightning_taylor.modules.weight_reads import Tap, can_be_tapped, tap
from lightning_taylor.utilities.hooks import InertCopy

__all__ = [
    "Consumer",
    "Consumers",
    "find_consumers",
    "traced_parameter",
]

_READING = ("weight", "weight_ih", "weight_ih_l0")
"""Parameters that read what their module is called with; those of hidden states read what no hook sees."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """One module that reads a group's channels.

    Attributes:
        name: the module's qualified name; with ``:output`` or ``:queries``, of what is watched where it is made.
        module: a convolution, transposed convolution, linear or recurrent layer; of an attention that calls none for
            its queries, one that hands them on, which ``OpenHeads`` puts there.
        width: how many input channels it has, or output channels.
        index: shape ``(C, M)``, int64: row ``c`` lists those that belong to channel ``c``.
        made: its output is watched, in place of its input.
        weight: what reads, where other code than the module reads with it, too: then it is watched, whoever calls.
    """

    name: str
    module: nn.Module
    width: int
    index: Tensor
    made: bool = False
    weight: nn.Parameter | None = None

    def watch(self, hook: Callable[..., Any]) -> RemovableHandle | Tap:
        """Let a forward pre-hook with keyword arguments see what is watched."""
        if self.weight is not None:
            return tap(self.weight, hook)
        if self.made:
            return self.module.register_forward_hook(_After(hook))
        return self.module.register_forward_pre_hook(hook, with_kwargs=True)


class _After(InertCopy):
    """A forward pre-hook as a forward hook: it is shown the output as if the next layer read it alone."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    def __call__(self, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        changed = self._hook(module, (out,), {})
        return None if changed is None else changed[0][0]


class Consumers:
    """Finds the modules behind consumer slices; tied weights have several.

    Args:
        model: the model.
        graph: its channel graph at the present widths.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._model, self._graph = model, graph
        self._handing: dict[str, nn.Identity] = {}
        self._owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
        for name, module in model.named_modules():
            for attribute, parameter in module._parameters.items():
                if parameter is not None:
                    self._owners[id(parameter)].append((f"{name}.{attribute}".lstrip("."), module))

    def of(self, read: Slice) -> list[Consumer] | str:
        """Find every module that reads through this slice, or say why it cannot be watched."""
        parameter = traced_parameter(self._model, self._graph, read.tensor)
        if parameter is None:
            return f"read through the buffer {read.tensor!r}, whose layer no hook can see"
        if read.tensor in self._graph.apart and (whole := self._of_weight(read, parameter)) is not None:
            return [whole]
        consumers = []
        for tensor, module in self._owners[id(parameter)]:
            if isinstance(module, nn.RNNBase) and tensor.endswith("weight_ih_l0_reverse"):
                continue  # reads what ``weight_ih_l0`` reads
            dim = _input_dim(module)
            if isinstance(module, NonDynamicallyQuantizableLinear) and not self._can_be_opened(tensor):
                return f"read through {tensor!r}, which its attention passes on without a call"
            if dim != read.dim or tensor.rpartition(".")[2] not in _READING:
                return f"read through {tensor!r}, which reads nothing that its module is called with"
            index = _input_channels(module, read)
            consumers.append(Consumer(tensor.rpartition(".")[0], module, _input_width(module, parameter), index))
        return consumers

    def _of_weight(self, read: Slice, parameter: nn.Parameter) -> Consumer | None:
        """Return the consumer that watches a weight; None where an attention calls its layer once it is opened."""
        tensor, module = self._owners[id(parameter)][0]
        dim = 1 if isinstance(module, nn.Embedding) else _input_dim(module)
        if self._can_be_opened(tensor) or dim != read.dim or not can_be_tapped(parameter):
            return None
        name, width = tensor.rpartition(".")[0], _input_width(module, parameter)
        return Consumer(name, module, width, _input_channels(module, read), weight=parameter)

    def of_queries(self, query: Slice) -> list[Consumer] | str:
        """Find what makes the queries of this slice, to be watched there, or say why it cannot be."""
        parameter = traced_parameter(self._model, self._graph, query.tensor)
        if parameter is None or parameter.ndim == 1:  # a bias is part of what its layer makes
            return [] if parameter is not None else f"queries are made by the buffer {query.tensor!r}"
        consumers = []
        for tensor, module in self._owners[id(parameter)]:
            name = tensor.rpartition(".")[0]
            attention = next((n for n in (name, name.rpartition(".")[0]) if self._hands_on(n)), None)
            if attention is not None:
                width = parameter.shape[0] // (3 if tensor.endswith("in_proj_weight") else 1)
                consumers.append(Consumer(f"{attention}:queries", self._handing[attention], width, query.index))
            elif _output_dim(module) == query.dim and tensor.rpartition(".")[2] == "weight":
                consumers.append(Consumer(f"{name}:output", module, parameter.shape[query.dim], query.index, made=True))
            else:
                return f"queries are made by {tensor!r}, whose output no hook can see"
        return consumers

    def _hands_on(self, name: str) -> bool:
        """Return whether a module is an attention whose headwise class hands its queries to a module of ours."""
        if hands_queries_on(self._model.get_submodule(name)):
            self._handing.setdefault(name, nn.Identity())
            return True
        return False

    def _can_be_opened(self, tensor: str) -> bool:
        """Return whether the attention around an output projection can be made to call it; see ``OpenHeads``."""
        around, _, layer = tensor.rpartition(".")[0].rpartition(".")
        module = self._model.get_submodule(around)
        return projection_of(module) == layer and (headwise(module) is not None or not is_stock(module))


def find_consumers(model: nn.Module, graph: ChannelGraph) -> tuple[dict[str, list[Consumer]], dict[str, str]]:
    """Return group name -> its consumers; and the groups with one that cannot be watched -> the reason in words."""
    finder, consumers, unscorable = Consumers(model, graph), {}, {}
    for name, group in graph.groups.items():
        each = [finder.of(s) for s in group.of(Role.CONSUMER)]
        each += [finder.of_queries(s) for s in group.of(Role.QUERY)]
        reasons = [reason for reason in each if isinstance(reason, str)]
        if reasons or not any(each):
            unscorable[name] = reasons[0] if reasons else "no layer reads its channels"
        else:
            consumers[name] = [consumer for some in each if not isinstance(some, str) for consumer in some]
    return consumers, unscorable


def traced_parameter(model: nn.Module, graph: ChannelGraph, name: str) -> nn.Parameter | None:
    """Return the parameter of that name; None if it is a buffer.

    Raises:
        UncoupledChannelsError: if it is gone, or has not the shape that the graph says.
    """
    try:
        owner = model.get_submodule(name.rpartition(".")[0])
        tensor = getattr(owner, name.rpartition(".")[2])
    except AttributeError:
        raise UncoupledChannelsError(f"{name!r} was in the model when it was traced and is gone; trace again") from None
    if tuple(tensor.shape) != tuple(graph.shapes[name]):
        raise UncoupledChannelsError(
            f"{name!r} has shape {tuple(tensor.shape)}, and the graph expects {tuple(graph.shapes[name])}; trace again"
        )
    return tensor if isinstance(tensor, nn.Parameter) else None


def _input_dim(module: nn.Module) -> int | None:
    """Return the dimension of the module's weight that reads its input; None if its call cannot be watched."""
    if isinstance(module, _ConvTransposeNd):
        return 0
    return 1 if isinstance(module, _ConvNd | nn.Linear | nn.RNNBase | nn.RNNCellBase) else None


def _output_dim(module: nn.Module) -> int | None:
    """Return the dimension of the module's weight that makes its output."""
    if isinstance(module, _ConvTransposeNd):
        return 1 if module.groups == 1 else None
    return 0 if isinstance(module, _ConvNd | nn.Linear) else None


def _input_channels(module: nn.Module, read: Slice) -> Tensor:
    """Return a slice's entries as input channels: a grouped convolution reads one per group through an entry."""
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd) or module.groups == 1:
        return read.index
    step = module.in_channels // module.groups
    return torch.cat([read.index + group * step for group in range(module.groups)], dim=1)


def _input_width(module: nn.Module, parameter: nn.Parameter) -> int:
    if isinstance(module, _ConvTransposeNd):
        return parameter.shape[0]
    return parameter.shape[1] * (module.groups if isinstance(module, _ConvNd) else 1)
