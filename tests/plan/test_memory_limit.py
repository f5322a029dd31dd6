"""The limit of the memory, against networks that really lost the channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from lightning_taylor import Target, trace_channels
from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.meter import Meter
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.measured_search import Selection, select_measured
from lightning_taylor.plan.memory_limit import MemoryLimit
from lightning_taylor.plan.price import channel_prices
from lightning_taylor.utilities.calls import ForwardCall


def block(i: int, o: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU())


OURS = {
    # The first layer's maps make the peak, until they are half as wide.
    "wide first": lambda: nn.Sequential(
        block(3, 32), block(32, 64, 2), block(64, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)
    ),
    # Two layers make it, the first and the last.
    "hourglass": lambda: nn.Sequential(
        block(3, 32),
        block(32, 64, 2),
        block(64, 64, 2),
        nn.Upsample(scale_factor=4),
        block(64, 16),
        nn.Conv2d(16, 4, 1),
    ),
}
NAMES = ["vgg", "residual", "inverted", "concat", "decoder", *OURS]


def measured(name: str) -> tuple[ChannelGraph, Meter]:
    torch.manual_seed(0)
    model, x = (OURS[name](), torch.rand(4, 3, 32, 32)) if name in OURS else zoo.build(name)
    graph = trace_channels(model, x)
    return graph, Meter(model.eval(), graph, [ForwardCall("", (x,))])


def share(meter: Meter, graph: ChannelGraph, lost: dict[str, int]) -> float:
    return meter.ratios(graph.shrink({n: range(k) for n, k in lost.items() if k}).shapes, ["memory"])["memory"]


@pytest.mark.parametrize("name", NAMES)
def test_what_stays_is_what_a_network_takes_that_lost_the_channels(name: str) -> None:
    graph, meter = measured(name)
    curve = meter.memory_curve(graph)
    assert curve
    limit, generator = MemoryLimit(curve, CostModel(graph), 0.5), np.random.default_rng(0)
    for _ in range(8):
        lost = {n: int(generator.integers(0, group.size)) for n, group in graph.groups.items()}
        expected = share(meter, graph, lost) - 0.5
        assert limit.over(np.array(list(lost.values()))) == pytest.approx(expected, abs=2e-3)


def selected(name: str, target: float) -> tuple[ChannelGraph, Meter, Selection]:
    graph, meter = measured(name)
    generator = torch.Generator().manual_seed(1)
    scores = {n: torch.rand(group.size, generator=generator) for n, group in graph.groups.items()}
    cost, asked = CostModel(graph), Target(memory=target)
    prices = channel_prices(asked, graph, cost, meter).by_group
    curve = meter.memory_curve(graph)
    found = select_measured(scores, graph, asked, meter, cost=cost, curve=curve, cost_power=1.0, prices=prices)
    return graph, meter, found


@pytest.mark.parametrize("target", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_no_group_could_keep_one_more_channel(name: str, target: float) -> None:
    graph, meter, found = selected(name, target)
    lost = {n: len(index) for n, index in found.remove.items()}
    assert found.measured["memory"] == share(meter, graph, lost) <= target
    for group, count in lost.items():
        assert share(meter, graph, {**lost, group: count - 1}) > target - 2e-3


@pytest.mark.parametrize("name", ["vgg", "wide first"])
def test_less_memory_than_the_smallest_network_takes_is_unreachable(name: str) -> None:
    with pytest.raises(TargetUnreachableError, match=r"memory=0\.001 cannot be met.*measured on"):
        selected(name, 0.001)


@pytest.mark.parametrize("wrong", [0.6, 0.9, 1.1, 1.6])
def test_a_curve_that_is_wrong_is_corrected_or_left_alone(wrong: float) -> None:
    """As where half of a layer's heads saves other bytes than the next half."""
    graph, meter = measured("wide first")
    curve = meter.memory_curve(graph)
    assert curve
    curve = replace(curve, saved=wrong * curve.saved)
    scores = {name: torch.arange(float(group.size)) for name, group in graph.groups.items()}
    for target in (0.9, 0.6, 0.4):
        found = select_measured(scores, graph, Target(memory=target), meter, curve=curve)
        assert target - 0.04 <= found.measured["memory"] <= target


class MemoryAndFlops:
    """Measures memory as a meter does, and for latency gives the share of the FLOPs."""

    def __init__(self, graph: ChannelGraph, meter: Meter) -> None:
        self.graph, self.meter, self.dense = graph, meter, CostModel(graph).dense.flops

    def ratios(
        self, shapes: Mapping[str, tuple[int, ...]], resources: Sequence[str], *, careful: bool = False
    ) -> dict[str, float]:
        now = CostModel(replace(self.graph, shapes=shapes)).now.flops
        return {**self.meter.ratios(shapes, ["memory"]), "latency": now / self.dense}


@pytest.mark.parametrize("wrong", [0.6, 1.0, 1.6])
def test_a_search_for_latency_goes_on_from_what_memory_asks_for(wrong: float) -> None:
    graph, meter = measured("wide first")
    curve = meter.memory_curve(graph)
    assert curve
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(group.size, generator=generator) for name, group in graph.groups.items()}
    both = MemoryAndFlops(graph, meter)
    target = Target(latency=0.4, memory=0.8)
    found = select_measured(scores, graph, target, both, curve=replace(curve, saved=wrong * curve.saved))
    assert 0.38 <= found.measured["latency"] <= 0.4
    assert found.measured["memory"] <= 0.8
