"""No group loses more than its share, whatever the scores and the target ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_taylor import Target, TargetUnreachableError, trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import ChannelGroup, Role, Slice
from lightning_taylor.plan.feasibility import reachable_minimum
from lightning_taylor.plan.limits import WidthLimits
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
    assert WidthLimits.of(graph, 1, 8, max_removed) == WidthLimits(least, 8)


def test_the_share_is_of_the_dense_width(graph: ChannelGraph) -> None:
    smaller = graph.shrink({"2": range(6)})
    assert WidthLimits.of(smaller, 1, 1, {"2": 0.5}).min_channels == {"0": 1, "2": 10}


def test_a_pattern_that_matches_nothing_is_an_error_with_the_names(graph: ChannelGraph) -> None:
    with pytest.raises(ValueError, match=r"max_removed: 'layer4\*' matches no layer; the layers are 0, 2, 4"):
        WidthLimits.of(graph, 1, 1, {"0": 0.5, "layer4*": 0.5})


def test_a_selection_stays_within_the_limits_or_says_that_it_cannot(graph: ChannelGraph) -> None:
    scores = {"0": torch.arange(10.0), "2": torch.arange(20.0) / 100}
    limits = WidthLimits.of(graph, 1, 1, {"2": 0.25})
    least = limits.min_channels
    removed = {
        name: len(index) for name, index in select(scores, graph, Target(channels=0.6), min_channels=least).items()
    }
    assert removed == {"0": 7, "2": 5}
    with pytest.raises(TargetUnreachableError, match="raise max_removed"):
        select(scores, graph, Target(channels=0.5), min_channels=least)
    assert reachable_minimum(graph, limits=limits).channels == 16


def test_an_inspection_counts_the_limits_in(net: nn.Module) -> None:
    found = inspect_model(net, torch.rand(1, 3), target=Target(channels=0.5), max_removed={"2": 0.25})
    assert {layer.layer: layer.least for layer in found.layers} == {"0": 1, "2": 15, "4": 2}
    assert "cannot be met" in found.problem


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9))
def test_a_group_may_have_its_width_and_every_multiple_below_that_is_not_too_small(
    size: int, least: int, multiple: int
) -> None:
    group = ChannelGroup("a", (Slice("a.weight", 0, torch.arange(size)[:, None], Role.PRODUCER),))
    expected = [n for n in range(size, 0, -1) if n == size or (n >= least and n % multiple == 0)]
    for limits in (WidthLimits(least, multiple), WidthLimits({"a": least, "b": 99}, multiple)):
        assert limits.widths(group).tolist() == expected
        assert limits.removable(group) == size - expected[-1]


@pytest.mark.parametrize(("least", "multiple"), [(0, 1), (1.5, 1), ({"a": 1, "b": 0}, 1), (1, 0), (1, "8")])
def test_limits_that_are_no_whole_numbers_of_at_least_one_are_refused(least: Any, multiple: Any) -> None:
    with pytest.raises(ValueError, match=r"(min_channels|round_to) must be a whole number of at least 1"):
        WidthLimits(least, multiple)


@pytest.mark.parametrize(
    ("entries", "round_to", "expected"),
    [
        ((1,), 8, [20, 16, 8]),
        ((16,), 8, list(range(20, 0, -1))),  # heads of 16 rows
        ((48, 16), 8, list(range(20, 0, -1))),  # and with queries, keys and values in one tensor
        ((4, 12), 8, list(range(20, 0, -2))),
        ((1, 49), 8, [20, 16, 8]),  # a map that is flattened: the convolution before it counts
        ((6,), 8, list(range(20, 0, -4))),
        ((2, 3), 6, [20, 18, 12, 6]),
        ((5,), 1, list(range(20, 0, -1))),
    ],
)
def test_tensors_keep_multiples_of_entries(entries: tuple[int, ...], round_to: int, expected: list[int]) -> None:
    slices = [
        Slice(f"{m}.weight", 0, torch.arange(20 * m).reshape(20, m), Role.PRODUCER if k == 0 else Role.CONSUMER)
        for k, m in enumerate(entries)
    ]
    widths = WidthLimits(1, round_to).widths(ChannelGroup("group", tuple(slices)))
    assert widths.tolist() == expected
    assert all(width * m % round_to == 0 for width in widths[1:] for m in entries)


def test_heads_go_where_their_rows_are_multiples() -> None:
    layer = nn.TransformerEncoderLayer(96, 6, 192, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(5 * 96, 2))
    graph = trace_channels(net, torch.rand(1, 5, 96))
    scores = {name: torch.arange(float(group.size)) / group.size for name, group in graph.groups.items()}
    removed = select(scores, graph, Target(flops=0.5), round_to=8)
    assert len(removed["0.self_attn"]) in range(1, 6)
    assert (192 - len(removed["0.linear1"])) % 8 == 0
