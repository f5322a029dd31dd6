"""A tapped weight shows what is read with it, and is otherwise the parameter that it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_taylor.modules.weight_reads import tap

READS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "its module": lambda layer, x: layer(x),
    "other code": lambda layer, x: F.linear(x, layer.weight, layer.bias),
    "other code, by keywords": lambda layer, x: F.linear(input=x, weight=layer.weight, bias=layer.bias),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_read_is_seen_and_can_be_changed(read: Callable[[nn.Linear, Tensor], Tensor]) -> None:
    layer, x, seen = nn.Linear(3, 2), torch.rand(4, 3), []
    expected = read(layer, 2 * x)

    def double(module: None, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> object:
        seen.append(args[0] if args else kwargs["input"])
        return ((2 * args[0],), kwargs) if args else (args, {"input": 2 * kwargs["input"]})

    handle = tap(layer.weight, double)
    assert torch.equal(read(layer, x), expected)
    assert torch.equal(seen[0], x)
    handle.remove()
    read(layer, x)
    assert len(seen) == 1


def test_it_stays_the_same_parameter_and_learns_the_same() -> None:
    layers = [nn.Linear(3, 2)]
    layers.append(copy.deepcopy(layers[0]))
    weight, x = layers[0].weight, torch.rand(4, 3)
    handle = tap(weight, lambda *_: None)
    for layer in layers:
        optimizer = torch.optim.AdamW(layer.parameters(), 0.1)
        layer(x).square().sum().backward()
        optimizer.step()
    handle.remove()
    assert layers[0].weight is weight
    assert type(weight) is nn.Parameter
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_copies_are_ordinary_and_unseen() -> None:
    layer = nn.Linear(3, 2)
    handle = tap(layer.weight, lambda *_: pytest.fail("the copy was seen"))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other.weight) is nn.Parameter
        other(torch.rand(4, 3))
    assert type(layer.state_dict()["weight"]) is Tensor
    handle.remove()


def test_the_last_of_several_hooks_makes_it_ordinary_again() -> None:
    weight = nn.Parameter(torch.rand(2, 3))
    handles = [tap(weight, lambda *_: None) for _ in range(2)]
    for handle, kind in zip(handles, ("TappedParameter", "Parameter"), strict=True):
        handle.remove()
        handle.remove()
        assert type(weight).__name__ == kind
