"""A module takes the shapes that a state dict has, whatever names its tensors go by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.checkpoint.widths import fit_shapes, widths_of


class Shared(nn.Module):
    """Two wrappers of one and the same body, so that its tensors have two names each."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.one, self.other, self.head = nn.ModuleList([body]), nn.ModuleList([body]), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one[0](x) + self.other[0](2 * x))


def test_a_shared_module_is_fitted_by_each_of_its_names() -> None:
    net, x = Shared(), torch.rand(2, 4)
    graph = prune_channels(net, graph := trace_channels(net, x), graph.sample(0.4))
    fresh = Shared()
    fit_shapes(fresh, net.state_dict(), widths_of(graph))
    fresh.load_state_dict(net.state_dict())
    assert fresh.other[0] is fresh.one[0]
    assert fresh.other[0][0].out_features < 8
    torch.testing.assert_close(fresh(x), net(x), rtol=0, atol=0)
