"""A channel's price is what it saves of the resource that is furthest from its limit."""

from __future__ import annotations

import pytest
import torch

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.price import channel_prices, furthest
from lightning_taylor.plan.target import Target


class Meter:
    """A machine on which the first group is dear."""

    def __init__(self, saved=None):
        self.saved, self.asked = saved, []

    def savings(self, graph, resource, limit):
        self.asked.append((resource, limit))
        if self.saved is None:
            raise UnsupportedModelError("it cannot run without data: it has none")
        return self.saved


def test_exact_resources_have_exact_prices(make_graph, plain_cost):
    graph = make_graph([6, 4, 5], spans=[1, 2, 1], work=[1000, 300, 20])
    for resource, unit in (("flops", 1e6), ("params", 1e6), ("channels", 1.0)):
        found = channel_prices(Target(**{resource: 0.5}), graph, CostModel(graph)).by_group
        for name in graph.groups:
            now, after = plain_cost(graph), plain_cost(graph.shrink({name: [0]}))
            assert found[name] == pytest.approx((getattr(now, resource) - getattr(after, resource)) / unit)


def test_measured_resources_are_priced_by_the_meter(make_graph):
    graph = make_graph([6, 4, 1])
    meter = Meter({"l0": 2e-3, "l1": 1e-3})
    found = channel_prices(Target(latency=0.6), graph, CostModel(graph), meter).by_group
    assert found == pytest.approx({"l0": 2.0, "l1": 1.0, "l2": 1e-3})
    found = channel_prices(Target(memory=0.7), graph, CostModel(graph), meter).by_group
    assert found == pytest.approx({"l0": 2e-9, "l1": 1e-9, "l2": 1e-12})
    assert meter.asked == [("latency", 0.6), ("memory", 0.7)]


def test_of_several_resources_the_one_furthest_from_its_limit_sets_the_price(make_graph):
    graph = make_graph([6, 4, 5], work=[1000, 300, 20])
    cost, target = CostModel(graph), Target(flops=0.5, latency=0.5)
    meter = Meter({"l0": 1.0, "l1": 1.0, "l2": 1.0})
    channel_prices(target, graph, cost, meter, {"latency": 0.9})
    assert meter.asked == []
    smaller = graph.shrink({"l0": [0, 1, 2]})
    assert furthest(target, CostModel(smaller), {"latency": 1.0}) == "latency"
    channel_prices(target, smaller, CostModel(smaller), meter, {"latency": 1.0})
    assert meter.asked == [("latency", 0.5)]


def test_what_cannot_be_measured_alone_is_ranked_by_flops_and_says_so(make_graph):
    graph = make_graph([6, 4])
    flops = channel_prices(Target(flops=0.5), graph, CostModel(graph))
    with pytest.warns(UserWarning, match="ranked by their FLOPs, not by their memory: it cannot run without data"):
        assert channel_prices(Target(memory=0.5), graph, CostModel(graph), Meter()) == flops
    assert channel_prices(Target(memory=0.5), graph, CostModel(graph)) == flops


def test_a_group_that_saves_nothing_has_a_price_all_the_same(make_graph):
    graph = make_graph([6, 4])
    found = channel_prices(Target(latency=0.5), graph, CostModel(graph), Meter({"l0": 1e-3, "l1": 0.0})).by_group
    assert 0 < found["l1"] < 1e-2 * found["l0"]


@pytest.mark.parametrize("target", [Target(params=0.5), Target(flops=0.5)])
def test_the_dearest_channels_go_first_where_all_matter_alike(make_graph, target):
    from lightning_taylor.plan.schedule import Demand
    from lightning_taylor.plan.select import select

    graph = make_graph([4, 4, 4], spans=[1, 3, 1], work=[10**6, 10**3, 10**2])
    price = channel_prices(target, graph, CostModel(graph)).by_group
    scores = {name: torch.ones(4) for name in graph.groups}
    found = select(scores, graph, Demand(Target(channels=0.01), channels=1), cost_power=1.0, prices=price)
    assert list(found) == [max(price, key=lambda name: price[name])]


def test_where_flops_stand_in_for_what_cannot_be_measured_the_prices_say_so(make_graph):
    graph = make_graph([6, 4])
    assert channel_prices(Target(memory=0.5), graph, CostModel(graph), Meter({"l0": 1.0})).resource == "memory"
    assert channel_prices(Target(memory=0.5), graph, CostModel(graph)).resource == "flops"
