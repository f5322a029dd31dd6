"""What an attention loses is the user's choice: whole heads, or the same coordinates of every head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from exactness import difference, masked, outputs, sliced
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo_heads import SPREAD, NonLocal, Own, Stock, build_spread

from lightning_taylor import trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.modules.attention import SCALED_BY
from lightning_taylor.modules.resize import shrink_modules
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.trace.options import AttentionHeads
from lightning_taylor.utilities.plain import from_plain, to_plain


def spread(model: nn.Module, x: Tensor) -> ChannelGraph:
    return trace_channels(model, x, attention_heads="spread")


def products(graph: ChannelGraph) -> list[str]:
    """The groups whose channels are multiplied with each other."""
    return [name for name, group in graph.groups.items() if group.of(Role.QUERY)]


def seeded(graph: ChannelGraph, share: float, seed: int) -> Mapping[str, Tensor]:
    return graph.sample(share, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SPREAD)
def test_what_is_left_is_exact(name: str) -> None:
    """All groups together, by another share each, and every group alone; and once more from what is left."""
    model, x = build_spread(name)
    graph = spread(model, x)
    assert products(graph)
    whole = outputs(model, x)
    shares = [seeded(graph, share, seed) for seed, share in enumerate((0.3, 0.7))]
    mixed = {group: shares[place % 2][group] for place, group in enumerate(graph.groups)}
    for remove in (*shares, mixed, *({group: [0]} for group in graph.groups)):
        expected = outputs(masked(model, graph, remove), x)
        assert difference(expected, outputs(sliced(model, graph, remove), x)) < 1e-12
        assert difference(whole, expected) > 1e-9
    thin = sliced(model, graph, mixed)
    again = spread(thin, x)
    assert {n: g.size for n, g in again.groups.items()} == {n: g.size for n, g in graph.shrink(mixed).groups.items()}
    for group in products(again):
        left = {group: [again.groups[group].size - 1]}
        assert difference(outputs(masked(thin, again, left), x), outputs(sliced(thin, again, left), x)) < 1e-12


def test_the_products_of_what_is_left_are_those_that_they_were() -> None:
    """The twin computes the attention of a dense module by hand, over the coordinates that stay."""
    model, x = build_spread("stock")
    graph, attention = spread(model, x), model.attention
    stay = torch.tensor([0, 2])
    thin = sliced(model, graph, {"attention": torch.tensor([1, 3])})
    tokens = model.stem(x).flatten(2).transpose(1, 2)
    q, k, v = (
        (tokens @ weight.T + bias).unflatten(-1, (3, 4))[..., stay].transpose(1, 2)
        for weight, bias in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    )
    mixed = ((q @ k.transpose(-2, -1)) / 4**0.5).softmax(-1) @ v  # by the width that heads had
    joined = attention.out_proj.weight.unflatten(1, (3, 4))[..., stay].flatten(1)
    expected = mixed.transpose(1, 2).flatten(2) @ joined.T + attention.out_proj.bias
    torch.testing.assert_close(thin.attention(tokens, tokens, tokens)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in SPREAD if n != "non_local"])
def test_by_default_whole_heads_go(name: str) -> None:
    model, x = build_spread(name)
    assert not products(trace_channels(model, x))


def test_queries_and_keys_of_a_block_without_heads_go_only_if_it_is_asked_for() -> None:
    model, x = build_spread("non_local")
    assert "contracted with another activation" in trace_channels(model, x).frozen["q"]
    assert {name: group.size for name, group in spread(model, x).groups.items()} == {"stem": 8, "q": 4, "v": 6}
    assert isinstance(model, NonLocal)


def test_heads_go_whole_where_the_scale_follows_their_width() -> None:
    torch.manual_seed(0)
    model = Own(fused=True, scaled=False).double().eval()
    graph = spread(model, torch.randn(1, 3, 16, 16, dtype=torch.float64))
    assert not products(graph)
    assert graph.groups["qkv"].size == 3


def test_heads_that_share_a_layer_with_their_queries_lose_all_three_alike() -> None:
    one, three = (build_spread(name)[0] for name in ("own", "own_three"))
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert {n: g.size for n, g in spread(one, x).groups.items()} == {"stem": 10, "qkv": 4}
    assert {n: g.size for n, g in spread(three, x).groups.items()} == {
        "stem": 10,
        "q": 4,
    }  # one number counts all three


@pytest.mark.parametrize("choice", get_args(AttentionHeads))
@pytest.mark.parametrize("name", SPREAD)
def test_flops_are_those_that_torch_counts(name: str, choice: Any) -> None:
    model, x = build_spread(name)
    graph = trace_channels(model, x, attention_heads=choice)
    remove = seeded(graph, 0.5, 0)
    with FlopCounterMode(display=False) as counter:
        sliced(model, graph, remove)(x[:1])
    assert CostModel(graph.shrink(remove)).now.flops == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("name", SPREAD)
def test_a_dense_model_becomes_the_pruned_one_from_widths_alone(name: str) -> None:
    """As when a checkpoint is loaded: shapes and what a trace has noted, but not which channels went."""
    model, x = build_spread(name)
    graph = from_plain(ChannelGraph, to_plain(spread(model, x)))
    first, second = seeded(graph, 0.3, 0), seeded(graph.shrink(seeded(graph, 0.3, 0)), 0.4, 1)
    thin = sliced(sliced(model, graph, first), graph.shrink(first), second)
    smaller = graph.shrink(first).shrink(second)
    other = copy.deepcopy(model)
    keep = {axis: torch.arange(smaller.width(axis)) for axis in {**graph.keep(first), **smaller.slices_by_axis()}}
    shrink_modules(other, keep, graph.followers)
    other.load_state_dict(thin.state_dict())
    assert difference(outputs(thin, x), outputs(other, x)) < 1e-12


def test_only_a_module_that_has_lost_some_keeps_its_scale() -> None:
    model, x = build_spread("stock")
    graph = spread(model, x)
    assert isinstance(model, Stock)
    assert SCALED_BY not in vars(model.attention)
    thin = sliced(model, graph, {"attention": [0]})
    assert vars(thin.attention)[SCALED_BY] == 4
    assert (thin.attention.num_heads, thin.attention.head_dim) == (3, 3)
    assert sorted(thin.state_dict()) == sorted(model.state_dict())


def test_a_choice_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="attention_heads must be one of 'whole', 'spread', got 'thin'"):
        trace_channels(Stock(), torch.randn(1, 3, 16, 16), attention_heads="thin")  # type: ignore[arg-type]
