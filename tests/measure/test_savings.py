"""What half of a group's channels saves, against a network that really lost them."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn

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
