"""What of a module is the network that is pruned, and what only stands beside it: teachers, loss networks, critics."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from lightning_taylor.utilities.calls import ForwardCall

__all__ = [
    "calls_of_network",
    "modules_beside",
    "tensors_of_network",
]


def modules_beside(model: nn.Module, counted: Collection[str]) -> frozenset[str]:
    """Return the names of the outermost modules that have parameters, none of which counts.

    Args:
        model: that holds the network.
        counted: names of the network's parameters, as ``ChannelGraph.parameters``; none if all count.

    Example:
        >>> both = nn.ModuleDict({"net": nn.Linear(2, 3), "teacher": nn.Sequential(nn.Linear(2, 9), nn.BatchNorm1d(9))})
        >>> modules_beside(both, {"net.weight", "net.bias"})
        frozenset({'teacher'})
    """
    beside: set[str] = set()
    for name, module in model.named_modules():  # outer ones come first
        own = [f"{name}.{p}" if name else p for p, _ in module.named_parameters()]
        if counted and own and not any(p in counted for p in own) and not _is_within(name, beside):
            beside.add(name)
    return frozenset(beside)


def tensors_of_network(model: nn.Module, beside: Collection[str]) -> list[Tensor]:
    """Return the parameters and buffers of a module without those of the modules beside its network."""
    named = (*model.named_parameters(), *model.named_buffers())
    return [tensor for name, tensor in named if not _is_within(name, beside)]


def calls_of_network(calls: Sequence[ForwardCall], beside: Collection[str]) -> list[ForwardCall]:
    """Return the calls of the network and its parts; all if there are none."""
    return [call for call in calls if not _is_within(call.module, beside)] or list(calls)


def _is_within(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
