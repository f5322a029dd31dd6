"""No group loses more than its share, whatever the scores and the target ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_taylor import Target, TargetUnreachableError, trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.feasibility import reachable_minimum
from lightning_taylor.plan.limits import limits
from lightning_taylor.plan.select import select
from lightning_taylor.report import inspect_model


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2))


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> ChannelGraph:
    return trace_channels(net, torch.rand(1, 3))


@pytest.mark.parametrize(
    ("max_removed", "least"),
    [
        (0.9, {"0": 1, "2": 2}),
        (0.0, {"0": 10, "2": 20}),
        (1.0, {"0": 1, "2": 1}),
        ({"2": 0.5}, {"0": 1, "2": 10}),
        ({"*": 0.8, "0": 0.3, "?": 0.5}, {"0": 7, "2": 10}),
    ],
)
def test_each_group_keeps_what_its_strictest_pattern_says(graph: ChannelGraph, max_removed: Any, least: Any) -> None:
    assert limits(graph, 1, max_removed) == least


def test_the_share_is_of_the_dense_width(graph: ChannelGraph) -> None:
    smaller = graph.shrink({"2": range(6)})
    assert limits(smaller, 1, {"2": 0.5}) == {"0": 1, "2": 10}


def test_a_pattern_that_matches_nothing_is_an_error_with_the_names(graph: ChannelGraph) -> None:
    with pytest.raises(ValueError, match=r"max_removed: 'layer4\*' matches no layer; the layers are 0, 2, 4"):
        limits(graph, 1, {"0": 0.5, "layer4*": 0.5})


def test_a_selection_stays_within_the_limits_or_says_that_it_cannot(graph: ChannelGraph) -> None:
    scores = {"0": torch.arange(10.0), "2": torch.arange(20.0) / 100}
    least = limits(graph, 1, {"2": 0.25})
    removed = {
        name: len(index) for name, index in select(scores, graph, Target(channels=0.6), min_channels=least).items()
    }
    assert removed == {"0": 7, "2": 5}
    with pytest.raises(TargetUnreachableError, match="raise max_removed"):
        select(scores, graph, Target(channels=0.5), min_channels=least)
    assert reachable_minimum(graph, min_channels=least).channels == 16


def test_an_inspection_counts_the_limits_in(net: nn.Module) -> None:
    found = inspect_model(net, torch.rand(1, 3), target=Target(channels=0.5), max_removed={"2": 0.25})
    assert {layer.layer: layer.least for layer in found.layers} == {"0": 1, "2": 15, "4": 2}
    assert "cannot be met" in found.problem
