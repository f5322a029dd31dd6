"""The slow, plainly right twins: lists of channels, one `select` each, and the dense network that is masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role

Lost = dict[str, dict[int, set[int]]]


def lost(graph: ChannelGraph, remove: Mapping[str, Iterable[int]], *roles: Role) -> Lost:
    """Tensor name -> dimension -> the entries that go."""
    gone: Lost = {}
    for name, channels in remove.items():
        for s in graph.groups[name].slices:
            if not roles or s.role in roles:
                entries = gone.setdefault(s.tensor, {}).setdefault(s.dim, set())
                for channel in channels:
                    entries.update(s.index[int(channel)].tolist())
    return gone


def without(tensor: Tensor, gone: Mapping[int, set[int]], shape: Iterable[int] | None = None) -> Tensor:
    """The tensor without some entries; of a state tensor, along the dimensions where it is as long as ``shape``."""
    sizes = tuple(tensor.shape if shape is None else shape)
    for dim, entries in gone.items():
        if tensor.ndim > dim and tensor.shape[dim] == sizes[dim]:
            tensor = torch.stack([tensor.select(dim, i) for i in range(sizes[dim]) if i not in entries], dim)
    return tensor


def train(model: nn.Module, optimizers: list[Optimizer], data: list[tuple[Tensor, Tensor]], consumers: Lost) -> None:
    """Steps on the data, the consumers' entries kept at zero and without gradient."""

    def closure(x: Tensor, y: Tensor) -> Tensor:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        for name, gone in consumers.items():
            zero(model.get_parameter(name).grad, gone)
        return loss

    for x, y in data:
        if any(isinstance(o, LBFGS) for o in optimizers):
            optimizers[0].step(partial(closure, x, y))
        else:
            closure(x, y)
            for optimizer in optimizers:
                optimizer.step()
        mask(model, consumers)


def mask(model: nn.Module, consumers: Lost) -> None:
    """Remove channels the other way: nobody reads them any more."""
    for name, gone in consumers.items():
        zero(model.get_parameter(name).detach(), gone)


def zero(tensor: Tensor | None, gone: Mapping[int, set[int]]) -> None:
    assert tensor is not None
    for dim, entries in gone.items():
        for entry in entries:
            tensor.select(dim, entry).zero_()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def named_state(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[tuple[int, str, str], Tensor]:
    """(optimizer, parameter name, state key) -> the state tensor."""
    names = {p: n for n, p in model.named_parameters()}
    return {
        (i, names[p], key): value
        for i, optimizer in enumerate(optimizers)
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def snapshot(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> dict[str, Any]:
    """Every object and every value that a failed surgery has to leave alone, in a form that compares with ``==``."""
    seen: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        seen[name] = (_of(tensor), tensor.requires_grad, _of(tensor.grad))
    for path, module in model.named_modules():
        seen[f"attributes of {path}"] = {k: v for k, v in vars(module).items() if isinstance(v, int | tuple | str)}
    for i, optimizer in enumerate(optimizers):
        seen[f"groups {i}"] = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        seen[f"cache {i}"] = getattr(optimizer, "_numel_cache", None)
        for p, state in optimizer.state.items():
            items = [(k, _of(v) if isinstance(v, Tensor) else v) for k, v in state.items() if not isinstance(v, list)]
            lists = [(k, id(v), [_of(t) for t in v]) for k, v in state.items() if isinstance(v, list)]
            seen[f"state {i} {id(p)}"] = (id(state), list(state), items, lists)
    return seen


def _of(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return id(tensor), dense.data_ptr(), tuple(tensor.shape), dense.stride(), dense.tolist()
