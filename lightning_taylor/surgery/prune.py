"""The surgery: parameters, buffers, attributes and optimizer state lose channels together, or not at all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Remove
from lightning_taylor.modules.attributes import concerned, known
from lightning_taylor.modules.evaluation_caches import renew_caches
from lightning_taylor.modules.resize import Touched, followed, owners, resized, touched_tensors
from lightning_taylor.surgery.mirrors import Copy
from lightning_taylor.surgery.optimizer_state import prepare_state
from lightning_taylor.surgery.transaction import Transaction
from lightning_taylor.surgery.wrapped_optimizers import unwrapped
from lightning_taylor.utilities.atomic import signals_deferred

__all__ = ["prune_channels"]


def prune_channels(
    model: nn.Module,
    graph: ChannelGraph,
    remove: Remove,
    *,
    optimizers: Iterable[Optimizer] = (),
    copies: Iterable[Copy] = (),
    drop_unknown_state: bool = False,
) -> ChannelGraph:
    """Remove channels from a living model and from all that its optimizers remember about them, in place.

    All or nothing: everything new is made first, then exchanged with SIGUSR1, SIGTERM and SIGINT held back; if
    anything raises, model, gradients and optimizers are as they were, object by object.

    Every ``Parameter`` and buffer stays the same object with the same dtype, device, memory format and
    ``requires_grad``, at its place in ``param_groups``; tied weights stay tied, hooks stay hooked. Tensors that no
    removed channel touches are not looked at. **The gradients of the touched parameters are dropped** (``.grad`` is
    None): call it after the optimizer's step, and while no loss waits for its backward pass, since that would write
    gradients of the old shape. ``LBFGS`` forgets its history, which mixes all of its parameters. Meanwhile the
    old and the new tensors of everything touched are in memory together; afterwards the old ones are free.

    Args:
        model: the module that was traced, or a copy with the same names (an averaged model).
        graph: its channels as it is now.
        remove: group name -> sorted unique indices into the group's current width. Empty changes nothing.
        optimizers: all that hold parameters of the model, or Lightning's wrappers of them. Parameters that are not
            the model's are left alone.
        copies: what mirrors the model's tensors and has to lose the same channels; see ``find_copies``.
        drop_unknown_state: forget an optimizer's state of a parameter where it follows the parameter in no known
            way, instead of raising.

    Returns:
        The graph of the smaller model; ``graph`` itself stays as it is.

    Raises:
        ValueError: if ``remove`` names an unknown group, or indices that it does not have or may not lose.
        UncoupledChannelsError: if a touched tensor is gone or has another shape than the graph says.
        OptimizerStateError: if an optimizer keeps state of a touched parameter that follows it in no known way.

    Example:
        >>> from lightning_taylor.graph.types import ChannelGroup, Role, Slice
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> channels = torch.arange(4)[:, None]
        >>> slices = (
        ...     Slice("0.weight", 0, channels, Role.PRODUCER),
        ...     Slice("0.bias", 0, channels, Role.PRODUCER),
        ...     Slice("2.weight", 1, channels, Role.CONSUMER),
        ... )
        >>> shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        >>> graph = ChannelGraph({"0": ChannelGroup("0", slices)}, {}, {"0": ("0.weight", 0)}, shapes, shapes)
        >>> prune_channels(model, graph, {"0": [1, 2]}).groups["0"].size
        2
        >>> model
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    _check_types(model, graph)
    copies = list(copies)
    keep, smaller = graph.cut(remove)
    touched = touched_tensors(model, keep)
    for t in touched:
        _check_shape(t, graph)
    with torch.inference_mode(False), torch.no_grad():
        states = list(unwrapped(optimizers))
        changes = [c for o in states for c in prepare_state(o, touched, drop_unknown=drop_unknown_state)]
        tensors = [(t.tensor, resized(t.tensor, t.keep)) for t in touched]
        values = known(concerned(graph.followers, {t.name for t in touched}), smaller.shapes)
        following = list(followed(model, owners(model, touched), values))
        with signals_deferred(), Transaction() as transaction:
            for change in changes:
                change.commit(transaction)
            for tensor, new in tensors:
                transaction.set_storage(tensor, new)
            for module, kept, own in following:
                transaction.follow_shapes(module, kept, own)
            for copy in copies:
                copy.cut(keep, transaction, values)
    cut = [name for name, _ in keep]
    renew_caches(model, cut)
    for copy in copies:
        if isinstance(copy.tensors, nn.Module):
            renew_caches(copy.tensors, [name.removeprefix(copy.prefix) for name in cut])
    return smaller


def _check_types(model: object, graph: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"prune_channels takes a torch.nn.Module, got {model!r}")
    if not isinstance(graph, ChannelGraph):
        raise TypeError(f"prune_channels takes the ChannelGraph of trace_channels, got {type(graph).__name__}")


def _check_shape(t: Touched, graph: ChannelGraph) -> None:
    found, expected = tuple(t.tensor.shape), graph.shapes.get(t.name)
    if found != expected:
        raise UncoupledChannelsError(
            f"{t.name!r} has shape {found}, but the graph says {expected}: the model changed after its trace; "
            "trace it again with trace_channels"
        )
