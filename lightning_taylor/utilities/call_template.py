"""A channel graph in the types that ``torch.load(weights_only=True)`` accepts, for the checkpoint that it travels in.

The graph travels whole. To trace again would need a batch and the dense model, and a resumed fit has neither: its
model already has the widths of the checkpoint when the first batch comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.row_layout import layout_from_plain, layout_to_plain
from lightning_taylor.graph.types import Axis, ChannelGroup, LinkedAttribute, Operation, Role, Slice
from lightning_taylor.utilities.calls import ForwardCall

__all__ = [
    "call_from_plain",
    "call_to_plain",
    "follower_from_plain",
    "follower_to_plain",
    "graph_from_plain",
    "graph_to_plain",
]


def graph_to_plain(graph: ChannelGraph) -> dict[str, Any]:
    """The graph as dicts, lists, strings, ints and int32 tensors.

    Example:
        >>> from lightning_taylor.trace.api import trace_channels
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> graph = trace_channels(net, torch.rand(1, 3))
        >>> graph_from_plain(graph_to_plain(graph)).groups["0"].size
        4
    """
    return {
        "groups": {name: [_slice_to_plain(s) for s in group.slices] for name, group in graph.groups.items()},
        "frozen": dict(graph.frozen),
        "layers": {layer: list(axis) for layer, axis in graph.layers.items()},
        "shapes": {name: list(shape) for name, shape in graph.shapes.items()},
        "dense": {name: list(shape) for name, shape in graph.dense.items()},
        "parameters": sorted(graph.parameters),
        "operations": [[o.module, o.name, o.flops, [list(axis) for axis in o.axes]] for o in graph.operations],
        "unseen": list(graph.unseen),
        "dense_sizes": dict(graph.dense_sizes),
        "followers": [follower_to_plain(f) for f in graph.followers],
        "doubtful": dict(graph.doubtful),
        "apart": sorted(graph.apart),
        "rows": {layer: layout_to_plain(layout) for layer, layout in graph.rows.items()},
    }


def graph_from_plain(plain: Mapping[str, Any]) -> ChannelGraph:
    """The graph that ``graph_to_plain`` was called on."""
    return ChannelGraph(
        groups={
            name: ChannelGroup(name, tuple(_slice_from_plain(s) for s in slices))
            for name, slices in plain["groups"].items()
        },
        frozen=dict(plain["frozen"]),
        layers={layer: _axis(axis) for layer, axis in plain["layers"].items()},
        shapes={name: tuple(shape) for name, shape in plain["shapes"].items()},
        dense={name: tuple(shape) for name, shape in plain["dense"].items()},
        parameters=frozenset(plain["parameters"]),
        operations=tuple(
            Operation(module, name, flops, tuple(_axis(axis) for axis in axes))
            for module, name, flops, axes in plain["operations"]
        ),
        unseen=tuple(plain["unseen"]),
        dense_sizes=dict(plain["dense_sizes"]),
        followers=tuple(follower_from_plain(f) for f in plain.get("followers", ())),
        doubtful=dict(plain.get("doubtful", {})),
        apart=frozenset(plain.get("apart", ())),
        rows={layer: layout_from_plain(layout) for layer, layout in plain.get("rows", {}).items()},
    )


def follower_to_plain(follower: LinkedAttribute) -> list[Any]:
    """A follower as a list."""
    minus = [list(axis) for axis in follower.minus]
    return [follower.module, follower.attribute, list(follower.axis), follower.dense, follower.width, minus]


def follower_from_plain(plain: list[Any]) -> LinkedAttribute:
    """The follower that ``follower_to_plain`` was called on."""
    module, attribute, axis, dense, width, *more = plain  # older checkpoints have no more
    return LinkedAttribute(
        module, attribute, _axis(axis), dense, width, tuple(_axis(minus) for minus in (more or [[]])[0])
    )


def call_to_plain(call: ForwardCall) -> dict[str, Any] | None:
    """The shapes and types of what a module was given; None if it was given more than tensors and plain values.

    Example:
        >>> call_to_plain(ForwardCall("net", (torch.zeros(1, 3),)))
        {'module': 'net', 'args': [{'shape': [1, 3], 'dtype': 'float32'}], 'kwargs': {}}
    """
    try:
        return {
            "module": call.module,
            "args": [_value_to_plain(value) for value in call.args],
            "kwargs": {name: _value_to_plain(value) for name, value in call.kwargs.items()},
        }
    except TypeError:
        return None


def call_from_plain(plain: Mapping[str, Any], generator: torch.Generator | None = None) -> ForwardCall:
    """A call of the same shapes: normally distributed numbers, and zeros for whole numbers and truth values."""
    args = tuple(_value_from_plain(value, generator) for value in plain["args"])
    kwargs = {name: _value_from_plain(value, generator) for name, value in plain["kwargs"].items()}
    return ForwardCall(plain["module"], args, kwargs)


def _value_to_plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if type(value) in (list, tuple):
        return {"of": type(value).__name__, "items": [_value_to_plain(v) for v in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"of": "dict", "items": {key: _value_to_plain(v) for key, v in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{type(value).__name__} is neither a tensor nor a plain value")


def _value_from_plain(plain: Any, generator: torch.Generator | None) -> Any:
    if not isinstance(plain, Mapping):
        return plain
    if "shape" in plain:
        dtype = getattr(torch, plain["dtype"])
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(*plain["shape"], dtype=dtype, generator=generator)
        return torch.zeros(*plain["shape"], dtype=dtype)
    if plain["of"] == "dict":
        return {key: _value_from_plain(v, generator) for key, v in plain["items"].items()}
    values = [_value_from_plain(v, generator) for v in plain["items"]]
    return tuple(values) if plain["of"] == "tuple" else values


def _slice_to_plain(s: Slice) -> list[Any]:
    return [s.tensor, s.dim, s.index.to(torch.int32), str(s.role)]


def _slice_from_plain(plain: list[Any]) -> Slice:
    tensor, dim, index, role = plain
    return Slice(tensor, dim, index.cpu().to(torch.int64), Role(role))


def _axis(plain: list[Any]) -> Axis:
    tensor, dim = plain
    return tensor, dim
