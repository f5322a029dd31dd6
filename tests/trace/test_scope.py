"""A scope names the modules that may lose channels and that count; what lies beyond keeps every weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor import prune_channels, trace_channels


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))


class Chained(nn.Module):
    """Two nets, of which the second reads what the first makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = net(3), net(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


X = torch.rand(1, 3, 16, 16)


@pytest.mark.parametrize(("scope", "groups"), [("first", {"first.0"}), ("second", {"second.0"})])
def test_only_the_scope_is_cut_and_counted(scope: str, groups: set[str]) -> None:
    whole, part = trace_channels(Chained(), X), trace_channels(Chained(), X, scope=scope)
    assert set(part.groups) == groups
    inside = [o for o in whole.operations if o.module.startswith(scope)]
    assert sum(o.flops for o in part.operations) == sum(o.flops for o in inside) > 0
    assert {name.partition(".")[0] for name in part.parameters} == {scope}
    beyond = {layer: why for layer, why in part.frozen.items() if not layer.startswith(scope)}
    assert len(beyond) == 2
    assert all(f"outside of the scope {scope!r}" in why for why in beyond.values())


def test_a_width_that_a_layer_beyond_reads_stays_and_the_reason_names_that_layer() -> None:
    graph = trace_channels(Chained(), X, scope=["first"])
    assert graph.frozen["first.3"].startswith("summed over by convolution in second.0")
    assert graph.frozen["first.3"].endswith("outside of the network")


def test_what_lies_beyond_keeps_every_weight() -> None:
    model = Chained()
    graph = trace_channels(model, X, scope="first")
    before = {name: t.clone() for name, t in model.second.state_dict().items()}
    prune_channels(model, graph, {"first.0": [0, 5]})
    assert model.first[0].out_channels == 6
    assert all(torch.equal(before[name], t) for name, t in model.second.state_dict().items())
    assert model(X).shape == (1, 6, 8, 8)


def test_a_scope_of_everything_is_no_scope() -> None:
    whole, scoped = trace_channels(Chained(), X), trace_channels(Chained(), X, scope=["first", "second"])
    assert {name: group.size for name, group in scoped.groups.items()} == {n: g.size for n, g in whole.groups.items()}
    assert scoped.operations == whole.operations


def test_a_scope_that_matches_nothing_is_an_error_that_lists_the_modules() -> None:
    with pytest.raises(ValueError, match=r"'generator' matches no module; the modules are first, second"):
        trace_channels(Chained(), X, scope="generator")
