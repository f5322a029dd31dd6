"""Weights with a length of their own per output channel, and what samples by coordinates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from redrawn import prunable
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

LAYERS = {
    "Linear": (lambda: nn.Linear(3, 8), lambda: nn.Linear(8, 4), (2, 3), 0),
    "Conv1d": (lambda: nn.Conv1d(3, 8, 3), lambda: nn.Conv1d(8, 4, 1), (2, 3, 6), 0),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 8, 3), lambda: nn.Conv2d(8, 4, 1), (2, 3, 5, 5), 1),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_with_a_length_of_their_own_can_go(layer: str) -> None:
    first, last, shape, dim = LAYERS[layer]
    graph = prunable(nn.Sequential(weight_norm(first(), dim=dim), nn.ReLU(), last()), torch.randn(shape))
    (group,) = graph.groups.values()
    assert group.size == 8
    original = "0.parametrizations.weight.original"
    assert {(f"{original}0", dim), (f"{original}1", dim)} <= {s.axis for s in group.slices}


def test_what_a_length_is_taken_over_stays() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 4))
    graph = prunable(net, torch.randn(2, 3))
    assert list(graph.groups) == ["2"]
    assert "length of a weight" in graph.frozen["0"]


class Warped(nn.Module):
    """Features sampled where a small network says."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        kind = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.dims, self.stem, self.head = dims, kind(3, 8, 3, padding=1), kind(8, 4, 1)
        self.look, self.locate = kind(3, 6, 1), nn.Linear(6, dims * (dims + 1))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.locate(self.look(x).relu().flatten(2).mean(2)).unflatten(1, (self.dims, self.dims + 1)).tanh()
        grid = F.affine_grid(theta, [*x.shape], align_corners=False)
        return self.head(F.grid_sample(self.stem(x).relu(), grid, align_corners=False))


@pytest.mark.parametrize("dims", [2, 3])
def test_sampling_by_coordinates_passes_channels_and_holds_coordinates(dims: int) -> None:
    graph = prunable(Warped(dims), torch.randn(2, 3, *[5] * dims))
    assert {name: group.size for name, group in graph.groups.items()} == {"stem": 8, "look": 6}
    assert "locate" in graph.frozen
