from __future__ import annotations

import itertools
import random
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.feasibility import check_reachable, reachable_minimum
from lightning_taylor.plan.limits import WidthLimits
from lightning_taylor.plan.measured_search import select_measured
from lightning_taylor.plan.schedule import Demand
from lightning_taylor.plan.select import select
from lightning_taylor.plan.target import Target


class Gauge:
    """Stands in for a meter: each resource is a function of the FLOPs fraction; remembers what it was asked.

    ``careful`` are functions for careful measurements, where those differ.
    """

    def __init__(self, graph, careful=None, **curves):
        self.graph = graph
        self.curves = {False: curves, True: curves if careful is None else careful}
        self.asked = []
        self.asked_carefully = []

    def ratios(self, shapes, resources, *, careful=False):
        cost = CostModel(replace(self.graph, shapes=shapes))
        flops = cost.now.flops / cost.dense.flops
        (self.asked_carefully if careful else self.asked).append((flops, tuple(resources)))
        return {name: self.curves[careful][name](flops) for name in resources}


@pytest.fixture
def vgg(make_graph):
    return _vgg(make_graph)


def _vgg(make_graph):
    return make_graph([32, 64, 128, 128], [1, 1, 1, 4], [12544, 3136, 784, 196])


def some_scores(graph, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(group.size, generator=generator) for name, group in graph.groups.items()}


def remaining(graph, remove):
    cost = CostModel(graph)
    now = cost.at({name: len(index) for name, index in remove.items()})
    return {n: getattr(now, n) / getattr(cost.dense, n) for n in ("flops", "params", "channels")}


def curve(floor, power):
    return lambda f: floor + (1 - floor) * f**power


@pytest.mark.parametrize("seed", range(8))
def test_the_exact_part_lands_as_closely_as_without_a_measured_one(make_graph, seed):
    graph = make_graph([3, 6, 4], work=[9000, 100, 400])  # one channel of the first is worth much
    scores, flops = some_scores(graph, seed), 0.93
    easy = Gauge(graph, latency=lambda f: 0.1)
    found = select_measured(scores, graph, Target(flops=flops, latency=0.9), easy).remove
    expected = select(scores, graph, Target(flops=flops))
    assert {n: i.tolist() for n, i in found.items()} == {n: i.tolist() for n, i in expected.items()}


curves = st.builds(curve, st.floats(0, 0.5), st.floats(0.6, 2))


@settings(max_examples=60, deadline=None)
@given(curves, st.integers(20, 99), st.integers(0, 2**32))
@example(curve(0.0, 1.75), 98, 0)
def test_a_measured_target_is_met_and_nearly_used_up(make_graph, latency, percent, seed):
    graph = _vgg(make_graph)
    gauge, limit = Gauge(graph, latency=latency), percent / 100
    assume(latency(reachable_minimum(graph).flops / CostModel(graph).dense.flops) < limit - 0.03)
    found = select_measured(some_scores(graph, seed), graph, Target(latency=limit), gauge)
    flops = remaining(graph, found.remove)["flops"]
    assert found.measured == {"latency": latency(flops)}
    # A hundredth, or what the dearest channel is worth: the network's steps may be coarser than that.
    dearest = max(CostModel(graph).saved_per_channel("flops").values()) / CostModel(graph).dense.flops
    step = latency(min(1.0, flops + dearest)) - latency(flops)
    assert limit - max(0.015, 0.01 + step) <= found.measured["latency"] <= limit
    assert len(gauge.asked) <= 8


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 99), st.integers(2, 8))
def test_any_noise_ends_in_a_met_figure_or_in_an_error(make_graph, seed, percent, most):
    graph, noise = _vgg(make_graph), random.Random(seed)
    gauge = Gauge(graph, latency=lambda f: f * noise.uniform(0.5, 1.5))
    try:
        found = select_measured(some_scores(graph), graph, Target(latency=percent / 100), gauge, most=most)
    except TargetUnreachableError:
        pass
    else:
        assert found.measured["latency"] <= percent / 100
    assert len(gauge.asked) <= most


@settings(max_examples=40, deadline=None)
@given(st.integers(30, 99), st.integers(30, 99), st.integers(30, 99), st.integers(30, 99))
def test_exact_and_measured_parts_hold_together(make_graph, flops, channels, latency, memory):
    graph = _vgg(make_graph)
    target = Target(flops=flops / 100, channels=channels / 100, latency=latency / 100, memory=memory / 100)
    gauge = Gauge(graph, latency=curve(0.1, 0.8), memory=curve(0.2, 1.5))
    found = select_measured(some_scores(graph), graph, target, gauge)
    fractions = {**remaining(graph, found.remove), **found.measured}
    assert all(fractions[name] <= fraction for name, fraction in target.asked.items())


def test_a_selection_that_the_exact_parts_suffice_for_is_that_of_select(vgg):
    scores, gauge = some_scores(vgg), Gauge(vgg, latency=lambda f: f)
    found = select_measured(scores, vgg, Target(flops=0.4, latency=0.9), gauge)
    expected = select(scores, vgg, Target(flops=0.4))
    assert {name: index.tolist() for name, index in found.remove.items()} == {
        name: index.tolist() for name, index in expected.items()
    }
    assert len(gauge.asked) == 1


def test_only_what_is_asked_for_is_measured(vgg):
    gauge = Gauge(vgg, latency=lambda f: f, memory=lambda f: f)
    select_measured(some_scores(vgg), vgg, Target(memory=0.5), gauge)
    assert {resources for _, resources in gauge.asked} == {("memory",)}
    found = select_measured(some_scores(vgg), vgg, Target(flops=0.5))
    assert found.measured == {}


def test_a_demand_that_is_met_already_removes_and_measures_nothing(vgg):
    gauge = Gauge(vgg, latency=lambda f: f)
    found = select_measured(some_scores(vgg), vgg, Target(latency=1.0), gauge)
    assert (found.remove, found.measured) == ({}, {"latency": 1.0})
    pruned = vgg.shrink({"l0": range(5)})
    found = select_measured(some_scores(pruned), pruned, Target(latency=0.9), gauge, now={"latency": 0.89})
    assert (found.remove, found.measured) == ({}, {"latency": 0.89})
    assert not gauge.asked


@pytest.mark.parametrize("level", [0.51, 0.55, 0.7])
@pytest.mark.parametrize("edge", [0.05, 0.1, 0.2, 0.4])
def test_a_plateau_above_the_limit_does_not_end_at_the_smallest_network(vgg, level, edge):
    # As where one layer makes the peak, and the next channels that go are of others.
    def plateau(f):
        return level + 0.02 * (f - edge) + 1.3 * max(0.0, f - 0.7) if f > edge else level * f / edge

    gauge = Gauge(vgg, memory=plateau)
    found = select_measured(some_scores(vgg), vgg, Target(memory=0.5), gauge)
    assert 0.5 * edge * 0.5 / level <= remaining(vgg, found.remove)["flops"]
    assert found.measured["memory"] <= 0.5
    assert len(gauge.asked) <= 3 * 8


def test_the_same_measurements_give_the_same_answer(vgg):
    samples = [0.9, 0.4, 0.7, 0.55, 0.6, 0.58, 0.595]
    found = []
    for _ in range(2):
        answers = itertools.cycle(samples)
        gauge = Gauge(vgg, latency=lambda f, answers=answers: next(answers))
        found.append(select_measured(some_scores(vgg), vgg, Target(latency=0.6), gauge))
    assert found[0].measured == found[1].measured
    assert {n: i.tolist() for n, i in found[0].remove.items()} == {n: i.tolist() for n, i in found[1].remove.items()}


def test_a_number_of_channels_goes_whole_and_is_measured_once(vgg):
    gauge = Gauge(vgg, latency=lambda f: f)
    demand = Demand(Target(channels=0.999, latency=0.3), channels=20)
    found = select_measured(some_scores(vgg), vgg, demand, gauge)
    assert sum(map(len, found.remove.values())) == 20
    assert len(gauge.asked) == 1
    assert found.measured["latency"] == gauge.asked[0][0]


def test_a_number_of_channels_stops_early_once_only_exact_parts_are_missing(vgg):
    gauge, pruned = Gauge(vgg, latency=lambda f: f), vgg.shrink({"l3": range(3)})
    demand = Demand(Target(channels=0.96, latency=0.99), channels=20)
    found = select_measured(some_scores(pruned), pruned, demand, gauge, now={"latency": 0.98})
    assert sum(map(len, found.remove.values())) == 349 - 337


@pytest.mark.parametrize("demand", [Target(latency=0.3), Target(latency=0.3, flops=0.9)])
def test_an_unreachable_latency_is_an_error_with_the_measured_figure(vgg, demand):
    gauge = Gauge(vgg, latency=curve(0.4, 1))
    with pytest.raises(TargetUnreachableError, match=r"latency=0\.3 cannot be met.*latency=0\.4\d* of.*measured on"):
        select_measured(some_scores(vgg), vgg, demand, gauge)
    assert gauge.asked[-1][0] < 0.01


def test_nothing_left_to_remove_is_unreachable_too(make_graph):
    graph = make_graph([4]).shrink({"l0": range(3)})
    gauge = Gauge(graph, latency=lambda f: 0.8)
    for demand in (Target(latency=0.5), Demand(Target(latency=0.5), channels=1)):
        with pytest.raises(TargetUnreachableError, match=r"latency=0\.8"):
            select_measured({"l0": torch.rand(1)}, graph, demand, gauge, now={"latency": 0.8})


def test_a_measured_target_without_a_meter_is_refused_not_met(vgg):
    scores, target = some_scores(vgg), Target(flops=0.9, memory=0.5)
    with pytest.raises(ValueError, match="needs a meter to measure memory"):
        select_measured(scores, vgg, target)
    with pytest.raises(ValueError, match=r"needs a measurement of .*memory.*select_measured"):
        select(scores, vgg, target)
    with pytest.raises(ValueError, match="needs a meter to measure memory"):
        check_reachable(target, vgg)
    with pytest.raises(ValueError, match="most=1"):
        select_measured(scores, vgg, target, Gauge(vgg), most=1)


def test_a_check_measures_the_smallest_network_once(vgg):
    gauge = Gauge(vgg, latency=curve(0.4, 1), memory=curve(0.1, 1))
    target = Target(flops=0.5, latency=0.5, memory=0.2)
    least = check_reachable(target, vgg, ["l0", "l1", "l2"], WidthLimits(2), meter=gauge)
    assert gauge.asked == [(least.flops / CostModel(vgg).dense.flops, ("latency", "memory"))]
    with pytest.raises(TargetUnreachableError, match=r"target latency=0\.3 cannot.*latency=0\.4.*the 1 frozen"):
        check_reachable(Target(latency=0.3, memory=0.2), vgg, meter=gauge)


def test_a_measured_target_that_takes_nearly_all_that_can_go_is_warned_of(vgg):
    gauge = Gauge(vgg, latency=lambda f: 0.4 + 0.6 * f)
    least = 0.4 + 0.6 * reachable_minimum(vgg).flops / CostModel(vgg).dense.flops
    check_reachable(Target(latency=1 - 0.89 * (1 - least)), vgg, meter=gauge)
    with pytest.warns(UserWarning, match=rf"latency=0\.4.* leaves little .* it measures latency={least:.4g} of"):
        check_reachable(Target(latency=1 - 0.91 * (1 - least)), vgg, meter=gauge)


def test_a_check_does_not_measure_what_fails_already(vgg):
    gauge = Gauge(vgg, latency=lambda f: f)
    with pytest.raises(TargetUnreachableError, match=r"channels=0\.001"):
        check_reachable(Target(channels=0.001, latency=0.9), vgg, meter=gauge)
    assert not gauge.asked


def test_what_would_end_the_pruning_is_within_the_limit_where_it_is_measured_with_care(vgg):
    lucky = Gauge(vgg, latency=lambda f: f - 0.04, careful={"latency": lambda f: f})
    found = select_measured(some_scores(vgg), vgg, Target(latency=0.7), lucky)
    assert 0.69 <= found.measured["latency"] <= 0.7
    assert found.measured["latency"] == pytest.approx(remaining(vgg, found.remove)["flops"])
    assert len(lucky.asked_carefully) <= 3


def test_channels_that_an_unlucky_measurement_took_are_kept_where_care_allows_it(vgg):
    unlucky = Gauge(vgg, latency=lambda f: f + 0.04, careful={"latency": lambda f: f})
    found = select_measured(some_scores(vgg), vgg, Target(latency=0.7), unlucky)
    assert 0.69 <= found.measured["latency"] <= 0.7


def test_an_event_that_is_not_the_last_measures_no_candidate_with_care(vgg):
    gauge = Gauge(vgg, latency=lambda f: f)
    select_measured(some_scores(vgg), vgg, Demand(Target(latency=0.8), goal=Target(latency=0.6)), gauge)
    assert not gauge.asked_carefully


def test_luck_alone_does_not_end_the_pruning_before_the_last_event(vgg):
    lucky = Gauge(vgg, latency=lambda f: f - 0.1, careful={"latency": lambda f: f})
    demand = Demand(Target(latency=0.61), goal=Target(latency=0.605))
    found = select_measured(some_scores(vgg), vgg, demand, lucky)
    assert found.measured["latency"] == pytest.approx(remaining(vgg, found.remove)["flops"])
    assert found.measured["latency"] > 0.605


def test_the_last_channels_of_a_number_are_measured_with_care(vgg):
    lucky = Gauge(vgg, latency=lambda f: 0.5, careful={"latency": lambda f: 0.9})
    found = select_measured(some_scores(vgg), vgg, Demand(Target(latency=0.6), channels=20), lucky)
    assert found.measured == {"latency": 0.9}


def test_where_an_exact_part_is_still_missing_nothing_is_measured_with_care(vgg):
    for demand in (
        Demand(Target(flops=0.8, latency=0.97), goal=Target(flops=0.3, latency=0.9)),
        Demand(Target(flops=0.3, latency=0.9), channels=5),
    ):
        gauge = Gauge(vgg, latency=lambda f: 0.5 * f)
        select_measured(some_scores(vgg), vgg, demand, gauge)
        assert not gauge.asked_carefully


def test_a_check_near_to_the_limit_is_made_with_care(vgg):
    little = pytest.warns(UserWarning, match="leaves little")
    refused = pytest.raises(TargetUnreachableError)
    for quick, careful, asked, end in (
        (0.63, 0.6, 0.61, little),
        (0.58, 0.62, 0.6, refused),
        (0.3, 0.9, 0.6, nullcontext()),
        (0.9, 0.3, 0.6, refused),
    ):
        gauge = Gauge(vgg, latency=lambda f, q=quick: q, careful={"latency": lambda f, c=careful: c})
        with end:
            check_reachable(Target(latency=asked), vgg, meter=gauge)
        assert len(gauge.asked_carefully) == (abs(quick - asked) < 0.1 * asked)


def test_an_unlucky_measurement_of_the_smallest_network_does_not_end_a_fit(vgg):
    unlucky = Gauge(vgg, latency=lambda f: 0.6 + 0.4 * f, careful={"latency": lambda f: 0.55 + 0.4 * f})
    found = select_measured(some_scores(vgg), vgg, Demand(Target(latency=0.59), goal=Target(latency=0.5)), unlucky)
    assert 0.55 < found.measured["latency"] <= 0.59


@pytest.mark.parametrize("edge", [0.2, 0.3, 0.42, 0.55, 0.63])
def test_between_a_met_and_a_missed_careful_measurement_lies_the_next(vgg, edge):
    """The true time falls in a step, which no line from the dense model finds."""
    steep = {"latency": lambda f: 0.6 + 0.02 * f if f < edge else 0.9}
    gauge = Gauge(vgg, latency=lambda f: f, careful=steep)
    found = select_measured(some_scores(vgg), vgg, Target(latency=0.7), gauge)
    tried = [flops for flops, _ in gauge.asked_carefully]
    (missed, met), (last,) = sorted(tried[:2], reverse=True), tried[2:]
    assert met < last < missed
    assert remaining(vgg, found.remove)["flops"] == pytest.approx(max(f for f in tried if f < edge))


def test_counted_bytes_are_not_measured_twice(vgg):
    gauge = Gauge(vgg, memory=lambda f: f)
    select_measured(some_scores(vgg), vgg, Target(memory=0.5), gauge)
    assert not gauge.asked_carefully


def test_what_no_careful_measurement_meets_is_unreachable(vgg):
    lucky = Gauge(vgg, latency=lambda f: f, careful={"latency": lambda f: 0.8})
    with pytest.raises(TargetUnreachableError, match=r"latency=0\.8"):
        select_measured(some_scores(vgg), vgg, Target(latency=0.7), lucky)
    assert lucky.asked_carefully[-1][0] < 0.01


@pytest.mark.parametrize("least", range(3, 23))
def test_a_search_may_end_at_the_smallest_network_whatever_its_share_is_rounded_to(make_graph, least):
    graph = make_graph([24, 27, 31], [1, 2, 1], [700, 330, 90])
    cost = CostModel(graph)
    limits = WidthLimits(least, 1)
    bottom = cost.at({name: group.size - least for name, group in graph.groups.items()}).flops / cost.dense.flops
    gauge = Gauge(graph, latency=lambda f: f, careful={"latency": lambda f: f + 0.3 * (f > bottom + 1e-9)})
    asked = bottom + 0.02
    found = select_measured(some_scores(graph), graph, Demand(Target(latency=asked)), gauge, limits=limits)
    assert found.measured["latency"] <= asked
