from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_taylor.errors import PruningError, TargetUnreachableError
from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.feasibility import check_reachable, reachable_minimum
from lightning_taylor.plan.limits import WidthLimits
from lightning_taylor.plan.schedule import Demand
from lightning_taylor.plan.select import select
from lightning_taylor.plan.target import Target

RESOURCES = ("flops", "params", "channels")


@st.composite
def problems(draw):
    """A graph's widths, scores with many ties, options, and a demand."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    count = len(sizes)
    spans = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    work = draw(st.lists(st.integers(1, 300), min_size=count, max_size=count))
    scored = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    scores = {
        f"l{g}": torch.tensor(draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))) / 2
        for g, size in enumerate(sizes)
        if scored[g]
    }
    names = draw(st.sets(st.sampled_from(RESOURCES), min_size=1))
    target = Target(**{name: draw(st.integers(30, 100)) / 100 for name in names})
    other = Target(**{name: draw(st.integers(30, 100)) / 100 for name in names})
    goal, channels = draw(st.sampled_from([(target, None), (other, None), (None, None), (None, 7), (other, 12)]))
    demand = Demand(target, channels, goal)
    options = {"min_channels": draw(st.integers(1, 3)), "round_to": draw(st.integers(1, 4))}
    return (sizes, spans, work), scores, demand, options


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_selection_is_that_of_the_walk_one_by_one(make_graph, plain_cost, problem):
    shape, scores, demand, options = problem
    graph = make_graph(*shape)
    expected = walk_one_by_one(scores, graph, demand, plain_cost, **options)
    if expected is None:
        with pytest.raises(TargetUnreachableError):
            select(scores, graph, demand, **options)
    else:
        found = select(scores, graph, demand, **options)
        assert {name: indices.tolist() for name, indices in found.items()} == expected


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(problems())
def test_what_is_promised_about_widths_holds(make_graph, problem):
    shape, scores, demand, options = problem
    graph = make_graph(*shape)
    try:
        remove = graph.normalize(select(scores, graph, demand, **options))
    except TargetUnreachableError:
        return
    for name, indices in remove.items():
        kept = graph.groups[name].size - len(indices)
        assert name in scores
        assert kept >= options["min_channels"]
        assert kept % options["round_to"] == 0


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(problems())
def test_a_target_is_met_and_no_removed_block_could_have_stayed(make_graph, plain_cost, problem):
    shape, scores, demand, options = problem
    graph, target = make_graph(*shape), demand.target
    try:
        remove = select(scores, graph, target, **options)
    except TargetUnreachableError:
        least = reachable_minimum(graph, scores, WidthLimits(**options))
        assert not meets(target, least, plain_cost(graph))
        return
    assert meets(target, plain_cost(graph.shrink(remove)), plain_cost(graph))
    for name, indices in remove.items():
        back = one_block_back(graph.groups[name].size, len(indices), options["round_to"])
        fewer = {**remove, name: indices[:back]}
        assert not meets(target, plain_cost(graph.shrink(fewer)), plain_cost(graph))


def walk_one_by_one(scores, graph, demand, plain_cost, **options):
    """The definition: take channels one by one until the demand is met, then put them back one by one.

    If that is far below the fit's target, do it again without the channel that was taken last and those that follow it
    in its group, for as long as the demand can be met; the closest of these wins. If it is far below the target still,
    every combination of widths is tried.
    """
    walk, best, barred = Walk(scores, graph, demand, plain_cost, **options), None, {}
    while True:
        counts, last = walk.forth(barred)
        if not walk.done(counts):
            break
        counts = walk.back(counts)
        if best is None or walk.undercut(counts) < walk.undercut(best):
            best = counts
        if last is None or walk.undercut(best) <= 0.01:
            break
        barred[last] = walk.chosen.count(last) - 1
    if best is None:
        return walk.removed_for(counts) if demand.channels is not None and any(counts.values()) else None
    return walk.removed_for(best if walk.undercut(best) <= 0.01 else walk.nearest() or best)


class Walk:
    """Removals are counts of channels per group, the least important ones first."""

    def __init__(self, scores, graph, demand, plain_cost, *, min_channels, round_to):
        self.graph, self.demand, self.plain_cost = graph, demand, plain_cost
        self.min_channels, self.round_to, self.chosen = min_channels, round_to, []
        position = {name: g for g, name in enumerate(graph.groups)}
        self.order = sorted(
            (score, position[name], index, name)
            for name, score_C in scores.items()
            for index, score in enumerate(score_C.tolist())
        )

    def removed_for(self, counts):
        of = {name: [index for _, _, index, group in self.order if group == name] for name in counts}
        return {name: sorted(of[name][:count]) for name, count in counts.items() if count}

    def cost(self, counts):
        return self.plain_cost(self.graph.shrink(self.removed_for(counts)))

    def done(self, counts):
        enough = self.demand.channels is not None and sum(counts.values()) >= self.demand.channels
        return enough or meets(self.demand.target, self.cost(counts), self.plain_cost(self.graph))

    def undercut(self, counts):
        if self.demand.channels is not None or self.demand.goal is None:
            return 0
        cost, dense = self.cost(counts), self.plain_cost(self.graph)
        return min(float(f) - getattr(cost, n) / getattr(dense, n) for n, f in self.demand.goal.asked.items())

    def forth(self, barred):
        """Take until it is done; what goes, and the group of the last channel that was taken."""
        taken, legal = dict.fromkeys(self.graph.groups, 0), dict.fromkeys(self.graph.groups, 0)
        self.chosen = []
        for *_, name in self.order:
            if self.done(legal):
                break
            if taken[name] != barred.get(name):
                taken[name] += 1
                self.chosen.append(name)
                size = self.graph.groups[name].size
                legal[name] = legal_count(size, taken[name], self.min_channels, self.round_to)
        return legal, (self.chosen or [None])[-1]

    def nearest(self):
        """Of all combinations that end near the target, that whose dearest channel is cheapest; None without any."""
        steps = [
            [0, *(n for n in range(1, group.size) if legal_count(group.size, n, self.min_channels, self.round_to) == n)]
            if any(name == owner for *_, owner in self.order)
            else [0]
            for name, group in self.graph.groups.items()
        ]
        every = [dict(zip(self.graph.groups, counts, strict=True)) for counts in itertools.product(*steps)]
        done = [(counts, self.undercut(counts)) for counts in every if self.done(counts)]
        near = [(counts, under) for counts, under in done if under <= 0.01]
        if not near:
            return None
        best = min(near, key=lambda c: (self.dearest(c[0]), c[1]))
        taken = dict.fromkeys(best[0], 0)
        self.chosen = []
        for *_, name in self.order:
            if taken[name] < best[0][name]:
                taken[name] += 1
                self.chosen.append(name)
        return self.back(best[0])

    def dearest(self, counts):
        """The place in the order of the last channel that goes."""
        places = {name: [place for place, (*_, owner) in enumerate(self.order) if owner == name] for name in counts}
        return max((places[name][count - 1] for name, count in counts.items() if count), default=-1)

    def back(self, counts):
        taken, legal = {name: self.chosen.count(name) for name in counts}, dict(counts)
        for name in reversed(self.chosen):
            taken[name] -= 1
            if taken[name] < legal[name]:
                fewer = {**legal, name: one_block_back(self.graph.groups[name].size, legal[name], self.round_to)}
                legal = fewer if self.done(fewer) else legal
        return legal


def legal_count(size, taken, min_channels, round_to):
    """How many of these channels may really go: what is kept is rounded up, and never below the minimum."""
    legal = [kept for kept in range(1, size) if kept >= min_channels and kept % round_to == 0]
    return max((size - kept for kept in legal if size - kept <= taken), default=0)


def one_block_back(size, count, round_to):
    """The next smaller number of removed channels that leaves a legal width."""
    return max(c for c in range(count) if c == 0 or (size - c) % round_to == 0)


def meets(target, cost, dense):
    return all(getattr(cost, n) <= Fraction(str(f)) * getattr(dense, n) for n, f in target.asked.items())


def test_ties_never_overshoot(make_graph):
    graph = make_graph([500, 500])
    scores = {name: torch.zeros(500) for name in graph.groups}
    remove = select(scores, graph, Demand(Target(channels=0.1), channels=125))
    assert {name: indices.tolist() for name, indices in remove.items()} == {"l0": list(range(125))}


def test_the_order_of_the_scores_does_not_matter(make_graph):
    graph = make_graph([30, 20, 10])
    scores = {name: torch.randint(3, (group.size,)).float() for name, group in graph.groups.items()}
    first = select(scores, graph, Target(flops=0.5))
    second = select(dict(reversed(scores.items())), graph, Target(flops=0.5))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 95))
def test_asked_and_achieved_agree_within_one_per_cent(make_graph, seed, percent):
    """Widths and work of a VGG: the channels of an early layer are a thousand times dearer than others."""
    graph = make_graph([64, 64, 128, 256, 512, 512], [1, 1, 1, 1, 1, 4], [50176, 50176, 12544, 3136, 784, 196])
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(group.size, generator=generator) for name, group in graph.groups.items()}
    counts = {n: len(i) for n, i in select(scores, graph, Target(flops=percent / 100)).items()}
    model = CostModel(graph)
    achieved = model.at(counts).flops / model.dense.flops
    assert 0 <= percent / 100 - achieved < 0.01 * percent / 100


def test_a_met_demand_removes_nothing(make_graph):
    graph = make_graph([8, 8])
    scores = {name: torch.rand(8) for name in graph.groups}
    assert select(scores, graph, Target(flops=1.0)) == {}
    assert select(scores, graph, Demand(Target(channels=1.0), channels=3)) == {}


def test_the_penalty_is_charged_per_mflop_of_one_channel_now(make_graph):
    graph = make_graph([4, 4], work=[10**6, 10**4]).shrink({"l0": [0]})
    saved = CostModel(graph).saved_per_channel("flops")
    scores = {"l0": torch.full((3,), 2.0), "l1": torch.full((4,), 1.0)}
    even = 1e6 * (2.0 - 1.0) / (saved["l0"] - saved["l1"])  # where both groups' channels rank alike
    demand = Demand(Target(channels=0.01), channels=1)
    assert list(select(scores, graph, demand, cost_penalty=0.99 * even)) == ["l1"]
    assert list(select(scores, graph, demand, cost_penalty=1.01 * even)) == ["l0"]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_power_weighs_scores_by_the_mflops_of_one_channel_now(make_graph, power):
    graph = make_graph([4, 4], work=[10**6, 10**4]).shrink({"l0": [0]})
    saved = CostModel(graph).saved_per_channel("flops")
    even = (saved["l0"] / saved["l1"]) ** power  # times as important: then both groups' channels rank alike
    demand = Demand(Target(channels=0.01), channels=1)
    for factor, first in ((0.99, "l0"), (1.01, "l1")):
        scores = {"l0": torch.full((3,), factor * even), "l1": torch.full((4,), 1.0)}
        assert list(select(scores, graph, demand, cost_power=power)) == [first]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused_by_name(make_graph, bad):
    scores = {"l0": torch.rand(4), "l1": torch.tensor([0.1, bad, 0.2])}
    with pytest.raises(PruningError, match="1 of the 3 scores of group 'l1' are not finite"):
        select(scores, make_graph([4, 3]), Target(flops=0.5))


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({"conv": torch.rand(4)}, {}, "'conv', which is no channel group"),
        ({"l0": torch.rand(5)}, {}, r"'l0' has 4 channels, but its scores have shape \(5,\)"),
        ({"l0": torch.rand(4)}, {"min_channels": 0}, "min_channels must be"),
        ({"l0": torch.rand(4)}, {"round_to": 0}, "round_to must be"),
        ({"l0": torch.rand(4)}, {"cost_penalty": -1.0}, "cost_penalty must be"),
        ({"l0": torch.rand(4)}, {"cost_penalty": 1.0, "cost_power": -1.0}, "cost_power must be"),
    ],
)
def test_bad_arguments_are_refused(make_graph, scores, options, message):
    with pytest.raises(ValueError, match=message):
        select(scores, make_graph([4, 3]), Target(flops=0.5), **options)


def test_scores_keep_their_order_in_any_dtype(make_graph):
    graph = make_graph([6])
    scores = torch.tensor([5, 0, 4, 1, 3, 2])
    expected = select({"l0": scores}, graph, Target(channels=0.5))
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        found = select({"l0": scores.to(dtype).requires_grad_()}, graph, Target(channels=0.5))
        assert found["l0"].tolist() == expected["l0"].tolist() == [1, 3, 5]


def test_the_reachable_minimum_is_every_scored_group_at_its_smallest(make_graph, plain_cost):
    graph = make_graph([20, 5, 7])
    least = reachable_minimum(graph, ["l0", "l2"], WidthLimits(3, 4))
    smallest = graph.shrink({"l0": list(range(16)), "l2": list(range(3))})
    assert least == plain_cost(smallest)
    assert reachable_minimum(graph).channels == 3


def test_an_unreachable_target_says_what_can_be_reached_and_what_to_relax(make_graph):
    graph = make_graph([10, 10])
    check_reachable(Target(channels=0.1), graph)
    with pytest.raises(TargetUnreachableError) as error:
        check_reachable(Target(channels=0.1, params=0.9), graph, ["l0"], WidthLimits(2))
    message = str(error.value)
    for part in ("channels=0.1", "channels=0.6", "min_channels", "round_to", "ignore=", "the 1 frozen"):
        assert part in message
    assert "params" not in message


def test_an_iterative_demand_takes_what_is_left_and_then_raises(make_graph):
    graph = make_graph([3])
    scores, demand = {"l0": torch.rand(3)}, Demand(Target(channels=0.01), channels=5)
    graph = graph.shrink(select(scores, graph, demand))
    assert CostModel(graph).now == Cost(flops=12, params=7, channels=1)
    with pytest.raises(TargetUnreachableError):
        select({"l0": torch.rand(1)}, graph, demand)
