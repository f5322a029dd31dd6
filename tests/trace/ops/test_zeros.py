"""Cells that begin with zeros of a width that they keep: the attribute follows, and what the zeros meet goes along."""

from __future__ import annotations

import pytest
import torch
from exactness import sliced
from redrawn import prunable
from torch import Tensor, nn

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class LongShort(nn.Module):
    """A convolutional LSTM that reads input and state together, as most do, with states of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim, self.gates, self.head = 5, nn.Conv2d(8, 20, 3, padding=1), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, c = (torch.zeros(len(x), self.hidden_dim, *x.shape[2:], dtype=x.dtype) for _ in range(2))
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([x, h], 1)).split(self.hidden_dim, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


class Gated(nn.Module):
    """A convolutional GRU along time, whose first state the network around it asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 5
        self.own, self.state = nn.Conv1d(3, 15, 3, padding=1), nn.Conv1d(5, 10, 3, padding=1)
        self.new = nn.Conv1d(5, 5, 3, padding=1)

    def begin(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.width, *x.shape[2:])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        (own_z, own_r, own_n), (z, r) = self.own(x).chunk(3, 1), self.state(h).chunk(2, 1)
        z, n = (own_z + z).sigmoid(), (own_n + self.new((own_r + r).sigmoid() * h)).tanh()
        return (1 - z) * n + z * h


class Stepped(nn.Module):
    """Three steps of a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = Gated(), nn.Conv1d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        h = self.cell.begin(x)
        for _ in range(3):
            h = self.cell(x, h)
        return self.head(h)


class Followed(nn.Module):
    """A plain cell whose first state is as wide as the layer that reads it says."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.state, self.head = (nn.Conv2d(into, 5, 1) for into in (3, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.state.in_channels, *x.shape[2:])
        for _ in range(2):
            h = (self.own(x) + self.state(h)).tanh()
        return self.head(h)


@pytest.mark.parametrize(
    ("net", "held"),
    [(LongShort, ("", "hidden_dim")), (Stepped, ("cell", "width")), (Followed, None)],
)
def test_units_of_a_cell_go_from_its_gates_its_state_and_its_zeros(
    net: type[nn.Module], held: tuple[str, str] | None
) -> None:
    model = net()
    graph = prunable(model, IMAGE)
    (name,) = (name for name, group in graph.groups.items() if ("head.weight", 1) in {s.axis for s in group.slices})
    assert graph.groups[name].size == 5
    if held is not None:
        smaller = sliced(model, graph, {name: [0, 3]})
        assert getattr(smaller.get_submodule(held[0]), held[1]) == 3
