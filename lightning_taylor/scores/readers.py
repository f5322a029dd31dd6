"""Which layers read a group's channels, and which of them a hook can watch.

Shape legend: C = channels of a group, M = entries that one channel owns in a layer's input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.channels import ChannelGraph, Slice

__all__ = ["Reader", "Readers", "checked_parameter"]


@dataclass(frozen=True, eq=False)
class Reader:
    """One module that reads a group's channels.

    Attributes:
        name: the module's qualified name.
        module: a convolution, transposed convolution or linear layer.
        width: how many input channels it has.
        index: shape ``(C, M)``, int64: row ``c`` lists the input channels that belong to channel ``c``.
    """

    name: str
    module: nn.Module
    width: int
    index: Tensor


class Readers:
    """Finds the modules behind consumer slices; tied weights have several.

    Args:
        model: the model.
        graph: its channel graph at the present widths.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._model, self._graph = model, graph
        self._owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
        for name, module in model.named_modules():
            for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                self._owners[id(parameter)].append((f"{name}.{attribute}".lstrip("."), module))

    def of(self, consumer: Slice) -> list[Reader] | str:
        """Every module that reads through this slice, or the reason why it cannot be watched."""
        parameter = checked_parameter(self._model, self._graph, consumer.tensor)
        if parameter is None:
            return f"read through the buffer {consumer.tensor!r}, whose layer no hook can see"
        found = []
        for tensor, module in self._owners[id(parameter)]:
            dim = _input_dim(module)
            if dim != consumer.dim or not tensor.endswith("weight"):
                return f"read through {tensor!r}, which belongs to no convolution or linear layer that is called"
            index = torch.cat(list(_input_channels(module, consumer)), dim=1)
            found.append(Reader(tensor.rpartition(".")[0], module, _input_width(module, parameter), index))
        return found


def checked_parameter(model: nn.Module, graph: ChannelGraph, name: str) -> nn.Parameter | None:
    """The parameter of that name; None if it is a buffer.

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
    """The dimension of the module's weight that reads its input; None if its call cannot be watched."""
    if isinstance(module, _ConvTransposeNd):
        return 0
    # nn.MultiheadAttention never calls its output projection, it passes on the bare weight.
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    return 1 if isinstance(module, _ConvNd | nn.Linear) else None


def _input_channels(module: nn.Module, consumer: Slice) -> Iterator[Tensor]:
    """The slice's entries as input channels: a grouped convolution reads one per group through the same entry."""
    if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
        step = module.in_channels // module.groups
        for group in range(module.groups):
            yield consumer.index + group * step
    else:
        yield consumer.index


def _input_width(module: nn.Module, parameter: nn.Parameter) -> int:
    if isinstance(module, _ConvTransposeNd):
        return parameter.shape[0]
    return parameter.shape[1] * (module.groups if isinstance(module, _ConvNd) else 1)
