"""What half of a group's channels saves, against a network that really lost them."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn
from torchvision.models import SwinTransformer

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.dry_pass import DryPass, OperatorCall
from lightning_taylor.measure.memory import byte_curve
from lightning_taylor.measure.savings import Savings
from lightning_taylor.modules.resize import with_shapes
from lightning_taylor.trace.api import trace_channels
from lightning_taylor.utilities.calls import ForwardCall

NETS = ["vgg", "residual", "inverted", "concat", "decoder"]


def work(call: OperatorCall) -> float:
    return float(sum(spec.entries for spec in call.specs))


def made(name: str) -> tuple[nn.Module, torch.Tensor, ChannelGraph, Savings]:
    model, x = zoo.build(name)
    graph = trace_channels(model, x)
    dry = DryPass(model.eval(), [ForwardCall("", (x[:1],))], len(x), graph.followers)
    return model.eval(), x, graph, Savings(dry, graph, work)


def without_half(graph: ChannelGraph, group: str) -> tuple[ChannelGraph, int]:
    count = graph.groups[group].size // 2
    return graph.shrink({group: range(count)}), count


@pytest.mark.parametrize("limit", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("name", NETS)
def test_memory_is_saved_where_more_than_the_limit_is_alive(name: str, limit: float) -> None:
    model, x, graph, savings = made(name)

    def curve(shapes: ChannelGraph) -> list[int]:
        net = with_shapes(model, shapes.shapes, graph.followers)
        return byte_curve(lambda: net(x), [*net.parameters(), *net.buffers(), x])

    now = curve(graph)
    floor = limit * max(now) if limit < 1 else 0  # with nothing above it, all moments count
    moments = sum(b > floor for b in now)
    found = savings.memory(graph, limit)
    assert set(found) == {name for name, group in graph.groups.items() if group.size > 1}
    for group, saved in found.items():
        smaller, count = without_half(graph, group)
        over = [sum(max(0, b - floor) for b in each) / moments for each in (now, curve(smaller))]
        assert saved == pytest.approx((over[0] - over[1]) / count, rel=0.05, abs=over[0] * 1e-3)


@pytest.mark.parametrize("name", NETS)
def test_latency_is_saved_by_the_operators_that_a_group_takes_part_in(name: str) -> None:
    _, _, graph, savings = made(name)
    found = savings.latency(graph)
    assert all(saved > 0 for saved in found.values())
    again = savings.latency(graph)
    assert found == again


def test_half_of_the_work_of_a_layer_between_two_others_is_saved() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    graph = trace_channels(net, torch.rand(1, 64))
    dry = DryPass(net, [ForwardCall("", (torch.rand(1, 64),))], 1, graph.followers)
    found = Savings(dry, graph, work).latency(graph)
    row = 64  # of the layer before, and a column of the one after; with the bias and what goes in
    assert found == pytest.approx({"0": 2 * row + 2, "1": 2 * row + 2}, rel=0.01)


def grouped(groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=groups), nn.Conv2d(32, 3, 1)
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(32, 4)

    def forward(self, x_NLE: torch.Tensor) -> torch.Tensor:
        return self.last(self.layers(x_NLE).mean(1))


def windows() -> nn.Module:
    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=4)


OTHER_OPERATORS = {
    "a convolution that is left with one of two groups": (lambda: grouped(2), (2, 3, 16, 16), "whole"),
    "a convolution with groups that are left thinner": (lambda: grouped(4), (2, 3, 16, 16), "spread"),
    "an attention that is left with half of its heads": (Transformer, (2, 6, 32), "whole"),
    "windows that are left with half of their heads": (windows, (1, 3, 32, 32), "whole"),
}


@pytest.mark.parametrize("kind", OTHER_OPERATORS)
def test_latency_is_saved_where_a_narrower_network_runs_other_operators(kind: str) -> None:
    make, size, conv_groups = OTHER_OPERATORS[kind]
    net = make().eval()
    x = torch.rand(size)
    graph = trace_channels(net, x, conv_groups=conv_groups)
    dry = DryPass(net, [ForwardCall("", (x,))], None, graph.followers)
    found = Savings(dry, graph, work).latency(graph)
    for name, saved in found.items():
        without, count = without_half(graph, name)
        expected = sum(map(work, dry(graph.shapes)[0])) - sum(map(work, dry(without.shapes)[0]))
        assert saved == pytest.approx(max(0.0, expected / count), rel=0.02), name
