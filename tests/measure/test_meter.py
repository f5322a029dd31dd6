from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
import zoo
from torch import nn
from torchvision import models

from lightning_taylor.measure.latency import Latency, LatencyComparison
from lightning_taylor.measure.meter import Meter
from lightning_taylor.modules.resize import shrink_modules, with_shapes
from lightning_taylor.plan.measured_search import select_measured
from lightning_taylor.plan.target import Target
from lightning_taylor.trace.api import trace_channels
from lightning_taylor.utilities.calls import ForwardCall

FLOAT = 4


def net():
    return nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))


def calls(batch=10):
    return [ForwardCall("", (torch.rand(batch, 4),))]


def peak(width, batch):
    """Weights, the input, and the hidden activations before and after the ReLU."""
    return FLOAT * (4 * width + width + 2 * width + 2 + 4 * batch + 2 * width * batch)


@pytest.mark.parametrize("batch", [1, 7])
def test_memory_is_the_exact_fraction_at_the_batch_asked_for(batch):
    model = net()
    graph = trace_channels(model, torch.rand(1, 4))
    meter = Meter(model, graph, calls(), batch)
    found = meter.ratios(graph.shrink({"0": range(20)}).shapes, ["memory"])
    assert found == {"memory": peak(10, batch) / peak(30, batch)}


def test_a_model_that_was_pruned_before_is_measured_against_its_dense_widths():
    model = net()
    graph = trace_channels(model, torch.rand(1, 4))
    remove = {"0": [1, 5, 7]}
    shrink_modules(model, graph.keep(remove))
    pruned = graph.shrink(remove)
    meter = Meter(model, pruned, calls())
    assert meter.ratios(pruned.shapes, ["memory"]) == {"memory": peak(27, 10) / peak(30, 10)}
    assert meter.ratios(graph.dense, ["memory"]) == {"memory": 1.0}


class Recurrent(nn.Module):
    """Its state has the batch in the second dimension."""

    def __init__(self):
        super().__init__()
        self.into, self.cell, self.out = nn.Linear(6, 24), nn.GRU(24, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x, state):
        return self.out(self.cell(self.into(x).relu(), state)[0][:, -1])


@pytest.mark.parametrize("batch", [None, 3])
def test_a_state_with_the_batch_in_its_second_dimension_is_measured_as_it_is(batch):
    model, inputs = Recurrent(), (torch.rand(8, 5, 6), torch.zeros(1, 8, 32))
    graph = trace_channels(model, inputs)
    meter = Meter(model, graph, [ForwardCall("", inputs)], batch)
    smaller = graph.shrink({"into": range(12)})
    assert meter.ratios(smaller.shapes, ["memory"])["memory"] < 1
    assert meter.savings(graph, "memory", 0.5)["into"] > 0


class Heavy(nn.Module):
    """Nearly all of its time is spent in two layers whose work grows with the square of one width."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3), nn.ReLU())
        self.head = nn.Conv2d(256, 4, 1)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_far_smaller_network_is_measured_as_faster():
    model, x = Heavy(), torch.rand(2, 3, 24, 24)
    graph = trace_channels(model, x)
    meter = Meter(model, graph, [ForwardCall("", (x,))])
    smaller = graph.shrink({name: range(group.size - 8) for name, group in graph.groups.items()})
    assert meter.ratios(smaller.shapes, ["latency"])["latency"] < 0.5


def test_measuring_leaves_the_model_and_the_random_state_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 2, 1)).train()
    x = torch.rand(2, 3, 8, 8)
    graph = trace_channels(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    meter = Meter(model, graph, [ForwardCall("", (x,))])
    meter.ratios(graph.shrink({"0": [0]}).shapes, ["memory"])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_context_surrounds_every_forward_pass():
    entered, model = [], net()

    @contextlib.contextmanager
    def context():
        entered.append(1)
        yield

    graph = trace_channels(model, torch.rand(1, 4))
    Meter(model, graph, calls(), context=context).ratios(graph.shapes, ["memory"])
    assert len(entered) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_memory_target_lands_within_a_hundredth_and_repeats_exactly(name):
    model, x = models.get_model(name, num_classes=10), torch.rand(2, 3, 64, 64)
    graph = trace_channels(model, x)
    meter = Meter(model, graph, [ForwardCall("", (x,))], batch=8)
    scores = {name: torch.rand(group.size) for name, group in graph.groups.items()}
    found = select_measured(scores, graph, Target(memory=0.6), meter)
    assert 0.57 < found.measured["memory"] <= 0.6
    smaller = graph.shrink(found.remove)
    assert meter.ratios(smaller.shapes, ["memory"]) == found.measured


def test_a_twin_at_pruned_widths_has_the_shapes_and_attributes_of_the_cut_model():
    model, x = zoo.build("inverted")
    graph = trace_channels(model, x)
    remove = graph.sample(0.4, torch.Generator().manual_seed(0))
    twin = with_shapes(model, graph.shrink(remove).shapes)
    back = with_shapes(twin, graph.dense)
    assert repr(back) == repr(model)
    shrink_modules(model, graph.keep(remove))
    assert repr(twin) == repr(model)
    assert {n: t.shape for n, t in twin.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert twin(x).shape == model(x).shape


def test_a_twin_keeps_the_memory_format():
    model = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    for shape in ((3, 4, 3, 3), (20, 4, 3, 3)):
        weight = with_shapes(model, {"weight": shape, "bias": shape[:1]}).weight
        assert weight.shape == shape
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_meter_that_could_measure_nothing_is_refused():
    model = net()
    graph = trace_channels(model, torch.rand(1, 4))
    with pytest.raises(ValueError, match="at least one call"):
        Meter(model, graph, [])
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        Meter(model, graph, calls(), batch=0)
    with pytest.raises(ValueError, match="cannot measure energy; a meter knows latency, memory"):
        Meter(model, graph, calls()).ratios(graph.shapes, ["energy"])


def test_a_careful_measurement_takes_as_many_pairs_as_its_spread_asks_for(monkeypatch):
    model, x = Heavy(), torch.rand(2, 3, 24, 24)
    graph = trace_channels(model, x)
    meter = Meter(model, graph, [ForwardCall("", (x,))])
    smaller = graph.shrink({name: range(group.size - 8) for name, group in graph.groups.items()})
    pairs = []

    def spread_of(spread):
        def comparing(before, after, *, warmup, repeats):
            pairs.append(repeats)
            times = Latency(0.04, 0.04, 0.04, repeats)
            return LatencyComparison(times, times, speedup=2.0, low=2.0 - spread, high=2.0 + spread)

        monkeypatch.setattr("lightning_taylor.measure.meter.compare_latency", comparing)
        return meter.ratios(smaller.shapes, ["latency"], careful=True)

    assert spread_of(0.05) == {"latency": 0.5}
    assert pairs[-1] == int((0.93 * 0.05 / 0.005) ** 2)
    spread_of(0.001)
    assert pairs[-1] == int(2 / 0.08)
    spread_of(1.0)
    assert pairs[-1] == int(20 / 0.08)


class Distilled(nn.Module):
    """A network with a larger teacher beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = zoo.build("vgg")[0]
        self.teacher = nn.Sequential(nn.Linear(500, 1000), nn.BatchNorm1d(1000), nn.Linear(1000, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_what_stands_beside_the_network_takes_no_memory_and_no_time() -> None:
    both, (_, x) = Distilled(), zoo.build("vgg")
    alone = trace_channels(both.net, x)
    graph = trace_channels(both, x)
    graph = replace(graph, parameters=frozenset(n for n in graph.parameters if n.startswith("net.")))
    teacher = ForwardCall("teacher", (torch.rand(len(x), 500),))
    meter, other = (
        Meter(both, graph, [teacher, ForwardCall("net", (x,))]),
        Meter(both.net, alone, [ForwardCall("", (x,))]),
    )
    for share in (0.3, 0.7):
        lost = {name: range(int(share * group.size)) for name, group in alone.groups.items()}
        inside = {f"net.{name}": index for name, index in lost.items()}
        expected = other.ratios(alone.shrink(lost).shapes, ["memory"])
        assert meter.ratios(graph.shrink(inside).shapes, ["memory"]) == expected
    prices, expected = meter.savings(graph, "memory", 0.5), other.savings(alone, "memory", 0.5)
    assert prices == {f"net.{name}": saved for name, saved in expected.items()}
