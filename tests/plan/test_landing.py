"""Where a prefix of the ranking overshoots, another combination of widths does not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import zoo

from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.select import select
from lightning_taylor.plan.target import Target
from lightning_taylor.trace.api import trace_channels


def landed(graph, target, seed):
    torch.manual_seed(seed)
    scores = {name: torch.rand(group.size) for name, group in graph.groups.items()}
    remove, cost = select(scores, graph, target), CostModel(graph)
    return cost.at({name: len(index) for name, index in remove.items()}).flops / cost.dense.flops


@pytest.mark.parametrize("name", ["spread", "vgg", "sliced", "residual", "inverted"])
@pytest.mark.parametrize("target", [0.7, 0.5, 0.3])
def test_a_small_net_lands_within_a_hundredth_if_its_widths_allow(name, target):
    graph = trace_channels(*zoo.build(name))
    cost = CostModel(graph)
    counts_NG = np.array(list(itertools.product(*(range(group.size) for group in graph.groups.values()))))
    left_N = cost.fractions_at(counts_NG)["flops"]
    nearest = left_N[left_N <= target].max()
    for seed in range(3):
        assert landed(graph, Target(flops=target), seed) >= (target - 0.01 if target - nearest <= 0.01 else 0)


def test_a_net_of_too_many_combinations_lands_near_by_two_groups(make_graph):
    # One channel of the widest group is worth four per cent, and 41^4 * 12 combinations cannot be tried.
    graph = make_graph([40, 40, 40, 40, 12], work=[10, 10, 10, 10, 3000])
    for seed, target in itertools.product(range(5), (0.5, 0.41, 0.3)):
        assert 0 <= target - landed(graph, Target(flops=target), seed) <= 0.01
