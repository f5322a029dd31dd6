"""Products of parameters: a low-rank update loses the rows and columns that the weight loses which it is added to."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from redrawn import prunable
from torch import Tensor, nn
from torch.nn.utils import parametrize

Update = Callable[[Tensor, Tensor], Tensor]


class LowRank(nn.Module):
    """A layer's weight with an update of rank 2, between two plain layers."""

    def __init__(self, update: Update, kind: type[nn.Linear] | type[nn.Conv2d]) -> None:
        super().__init__()
        widths = ((3, 8), (8, 12), (12, 4))
        self.stem, self.body, self.head = (
            nn.Linear(into, out) if kind is nn.Linear else nn.Conv2d(into, out, 3) for into, out in widths
        )
        self.update, (out, *rest) = update, self.body.weight.shape
        self.down, self.up = nn.Parameter(torch.randn(2, math.prod(rest))), nn.Parameter(torch.randn(out, 2))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.update(self.up, self.down).view_as(self.body.weight) * 0.5 + self.body.weight
        apply = F.linear if isinstance(self.body, nn.Linear) else F.conv2d
        return self.head(apply(self.stem(x).relu(), weight, self.body.bias).relu())


UPDATES: dict[str, Update] = {
    "product": lambda up, down: up @ down,
    "transposed": lambda up, down: (down.t() @ up.t()).t(),
    "einsum": lambda up, down: torch.einsum("or,ri->oi", up, down),
}


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
@pytest.mark.parametrize("update", UPDATES)
def test_rows_and_columns_of_an_update_go_with_those_of_the_weight(
    update: str, kind: type[nn.Linear] | type[nn.Conv2d]
) -> None:
    x = torch.randn(2, 3) if kind is nn.Linear else torch.randn(2, 3, 9, 9)
    graph = prunable(LowRank(UPDATES[update], kind), x)
    assert {name: group.size for name, group in graph.groups.items()} == {"stem": 8, "body": 12}
    assert ("up", 0) in {s.axis for s in graph.groups["body"].slices}
    assert ("down", 1) in {s.axis for s in graph.groups["stem"].read}


class Adapted(nn.Module):
    """The same as a parametrization, which is called with the weight."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, into)), nn.Parameter(torch.randn(out, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def test_an_update_may_be_a_parametrization() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    parametrize.register_parametrization(net[2], "weight", Adapted(8, 12))
    assert {name: group.size for name, group in prunable(net, torch.randn(2, 3)).groups.items()} == {"0": 8, "2": 12}


class Queried(nn.Module):
    """A layer reads a parameter as it reads data: its outputs are channels, and so is what the parameter has."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.stem = nn.Parameter(torch.randn(5, 8)), nn.Linear(3, 8)
        self.mix, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.stem(x)).relu()[:, None] + self.mix(self.query))


def test_a_layer_reads_a_learnt_query() -> None:
    graph = prunable(Queried(), torch.randn(2, 3))
    assert {name: group.size for name, group in graph.groups.items()} == {"stem": 8, "mix": 12}
    assert ("query", 1) in {s.axis for s in graph.groups["stem"].slices}
