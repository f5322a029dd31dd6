"""What a network keeps of its parameters for evaluation is as small as they are after a removal."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.surgery.mirrors import Copy


class Scaled(nn.Module):
    """Keeps the exponential of its scales while it is evaluated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.norm = nn.Parameter(torch.randn(channels, 1, 1)), nn.BatchNorm2d(channels)
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Scaled:
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.norm(x * self.scale.exp())
        if not self.kept:
            self.kept["scale"] = self.scale.exp().detach()
        return self.norm(x * self.kept["scale"])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), Scaled(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AvgPool2d(4), nn.Flatten())


X = torch.randn(2, 3, 8, 8)


def test_what_was_kept_of_the_dense_network_is_made_anew_also_in_its_copies() -> None:
    model, fresh = net().eval(), net().eval()
    average = copy.deepcopy(model)
    model[1].norm.train()  # a mode of its own
    model(X), average(X)
    graph = trace_channels(fresh, X)
    prune_channels(model, graph, {"0": [1, 5]}, copies=[Copy("average", average)])
    modes = [module.training for module in model.modules()]
    assert modes == [module is model[1].norm for module in model.modules()]
    prune_channels(fresh, graph, {"0": [1, 5]})
    for other in (model.eval(), average):
        other.load_state_dict(fresh.state_dict())
        assert other(X).equal(fresh(X))


def test_a_module_that_lost_nothing_and_one_in_training_keep_theirs() -> None:
    for model in (net().eval(), net()):
        model[1].kept = {"scale": torch.ones(8, 1, 1)}
        layers = trace_channels(nn.Sequential(model[0], nn.ReLU(), model[3]), X)
        prune_channels(nn.Sequential(model[0], nn.ReLU(), model[3]), layers, {"0": [0]})
        assert model[1].kept
