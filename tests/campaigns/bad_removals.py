"""Misuse of ``prune_channels`` and ``trace_channels``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
import zoo
from torch import nn

from campaigns.cases import Case
from lightning_taylor import prune_channels, trace_channels

X = torch.randn(2, 3, 12, 12)


@cache
def _graph(kind: type[nn.Module]) -> Any:
    return trace_channels(kind(), X)


def graph_of(net: nn.Module) -> Any:
    """Give the graph of a network of the zoo, which is traced once: it does not depend on the weights."""
    return _graph(type(net))


def removing(remove: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda net: prune_channels(net, graph_of(net), remove, **kwargs)


def _other_optimizer(net: nn.Module) -> None:
    """Of another model: left alone."""
    other = zoo.Residual()
    optimizer = torch.optim.Adam(other.parameters())
    other(X).sum().backward()
    optimizer.step()
    prune_channels(net, graph_of(net), {"stem.0": [0]}, optimizers=[optimizer])
    optimizer.step()


def _strange_state(net: nn.Module) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    optimizer.state[net.stem[0].weight]["strange"] = torch.zeros(5, 7)  # type: ignore[index,union-attr]
    prune_channels(net, graph_of(net), {"stem.0": [0]}, optimizers=[optimizer])


def _stale(net: nn.Module) -> None:
    graph = graph_of(net)
    prune_channels(net, graph, {"stem.0": [0]})
    prune_channels(net, graph, {"stem.0": [0]})


def _stale_by_hand(net: nn.Module) -> None:
    graph = graph_of(net)
    net.head = nn.Linear(13, 5)
    prune_channels(net, graph, {"project": [0]})


def _unfit_copy(net: nn.Module) -> None:
    from lightning_taylor.surgery.mirrors import Copy

    prune_channels(net, graph_of(net), {"stem.0": [0]}, copies=[Copy("mine", zoo.Concat())])


REMOVE: list[tuple[Any, str]] = [
    ({"layer9": [0]}, "no channel group 'layer9'; this graph has 'stem.0'"),
    ({"head": [0]}, "no channel group 'head'"),
    ({"": [0]}, "no channel group ''"),
    ({5: [0]}, "no channel group 5"),
    ({"stem.0": [3, 1]}, "sorted and unique"),
    ({"stem.0": [1, 1]}, "sorted and unique"),
    ({"stem.0": [8]}, "channels 0 to 7, got indices from 8"),
    ({"stem.0": [-1]}, "indices from -1"),
    ({"stem.0": list(range(8))}, "cannot lose all"),
    ({"stem.0": [0.5]}, "'stem.0'.*whole numbers"),
    ({"stem.0": torch.tensor([1.0])}, "'stem.0'.*whole numbers"),
    ({"stem.0": torch.tensor([float("nan")])}, "'stem.0'.*whole numbers"),
    ({"stem.0": torch.tensor([True] + [False] * 7)}, "'stem.0'.*mask.*nonzero"),
    ({"stem.0": [[0, 1]]}, "one-dimensional"),
    ({"stem.0": 3}, "'stem.0'.*whole numbers"),
    ({"stem.0": torch.tensor(3)}, "one-dimensional"),
    ({"stem.0": None}, "'stem.0'.*whole numbers"),
    ({"stem.0": ["a"]}, "'stem.0'.*whole numbers"),
    ({"stem.0": [10**30]}, "'stem.0'"),
    (["stem.0"], "remove maps group names"),
    (None, "remove maps group names"),
    ("stem.0", "remove maps group names"),
]
FINE: list[Any] = [
    {},
    {"stem.0": []},
    {"stem.0": range(3)},
    {"stem.0": np.array([0, 2])},
    {"stem.0": torch.tensor([0])},
]
INPUTS: list[tuple[Any, str]] = [
    (torch.randn(2, 1, 12, 12), "forward pass of Residual raised RuntimeError"),
    (torch.randn(3, 12), "forward pass of Residual raised"),
    (torch.zeros(2, 3, 12, 12, dtype=torch.int64), "forward pass of Residual raised"),
    ("image", "forward pass of Residual raised"),
    (None, "forward pass of Residual raised"),
    ((X, X), "forward pass of Residual raised TypeError"),
    ({"image": X}, "forward pass of Residual raised TypeError.*image"),
    ((), "forward pass of Residual raised TypeError"),
    (torch.randn(2, 3, 12, 12, device="meta"), "meta"),
    (torch.randn(0, 3, 12, 12), "batch without an example"),
]


def _cases() -> Iterator[Case]:
    for remove, says in REMOVE:
        yield Case(f"remove {remove!r}", removing(remove), says, zoo.Residual)
    for remove in FINE:
        yield Case(f"remove {remove!r}", removing(remove), None, zoo.Residual, changes=True)
    for inputs, says in INPUTS:
        shown = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        yield Case(f"trace on {shown}", lambda net, x=inputs: trace_channels(net, x), says, zoo.Residual)
    for pattern, says in (
        ("layer9", "write \\['layer9'\\]"),
        (["layer9"], "'layer9' matches no layer; the layers are stem.0"),
        (None, "ignore takes"),
        ([5], "ignore takes"),
        ([""], "ignore takes"),
    ):
        yield Case(
            f"trace with ignore={pattern!r}",
            lambda net, i=pattern: trace_channels(net, X, ignore=i),
            says,
            zoo.Residual,
        )
    yield Case("trace a name", lambda _: trace_channels("resnet18", X), "takes a torch.nn.Module, got 'resnet18'")  # type: ignore[arg-type]
    yield Case("trace a class", lambda _: trace_channels(zoo.Residual, X), "takes a torch.nn.Module, got")  # type: ignore[arg-type]
    yield Case("trace a function", lambda _: trace_channels(torch.relu, X), "takes a torch.nn.Module, got")  # type: ignore[arg-type]
    yield Case(
        "prune a name",
        lambda _: prune_channels("net", graph_of(zoo.Residual()), {"stem.0": [0]}),
        "takes a torch.nn.Module",
    )  # type: ignore[arg-type]
    yield Case(
        "no graph", lambda net: prune_channels(net, None, {"stem.0": [0]}), "takes the ChannelGraph", zoo.Residual
    )  # type: ignore[arg-type]
    yield Case(
        "groups for a graph",
        lambda net: prune_channels(net, graph_of(net).groups, {"stem.0": [0]}),
        "takes the ChannelGraph",
        zoo.Residual,
    )
    yield Case(
        "another model",
        lambda net: prune_channels(net, graph_of(zoo.Residual()), {"stem.0": [0]}),
        "no parameter or buffer of that name",
        zoo.Concat,
    )
    yield Case(
        "an optimizer, not a list",
        lambda net: removing({"stem.0": [0]}, optimizers=torch.optim.SGD(net.parameters()))(net),
        "optimizers takes a list",
        zoo.Residual,
    )
    yield Case(
        "no optimizer",
        removing({"stem.0": [0]}, optimizers=["SGD"]),
        "optimizers must hold torch optimizers, got str",
        zoo.Residual,
    )
    yield Case("another model's optimizer", _other_optimizer, None, zoo.Residual, changes=True)
    yield Case("a strange optimizer state", _strange_state, "strange", zoo.Residual)
    yield Case("a stale graph", _stale, "model changed after its trace", zoo.Residual, changes=True)
    yield Case("a layer exchanged", _stale_by_hand, "'head.weight' has shape", zoo.Residual, changes=True)
    yield Case("a copy that is none", _unfit_copy, "stem.0.weight|'mine'", zoo.Residual)
    yield Case("sample -1", lambda net: graph_of(net).sample(-1), "fraction must lie in", zoo.Residual)
    yield Case("sample nan", lambda net: graph_of(net).sample(float("nan")), "fraction must lie in", zoo.Residual)


CASES: list[Case] = list(_cases())
