from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from lightning_taylor.plan.cost import CostModel
from lightning_taylor.trace.api import trace_channels

SMALL_INPUT = (2, 3, 64, 64)


@st.composite
def widths_and_losses(draw):
    sizes = draw(st.lists(st.integers(2, 9), min_size=1, max_size=5))
    spans = draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    work = draw(st.lists(st.integers(1, 10**7), min_size=len(sizes), max_size=len(sizes)))
    losses = [draw(st.integers(0, size - 1)) for size in sizes]
    return sizes, spans, work, losses


def first_channels(losses):
    return {f"l{g}": list(range(count)) for g, count in enumerate(losses)}


@given(widths_and_losses())
def test_a_what_if_costs_what_the_shrunk_graph_costs(make_graph, plain_cost, case):
    sizes, spans, work, losses = case
    graph = make_graph(sizes, spans, work)
    what_if = CostModel(graph).at({f"l{g}": count for g, count in enumerate(losses)})
    shrunk = graph.shrink(first_channels(losses))
    assert what_if == plain_cost(shrunk) == CostModel(shrunk).now


@given(widths_and_losses(), st.data())
def test_the_model_after_a_removal_is_that_of_the_shrunk_graph(make_graph, case, data):
    sizes, spans, work, losses = case
    graph = make_graph(sizes, spans, work)
    before = CostModel(graph)
    after = before.after({f"l{g}": count for g, count in enumerate(losses)})
    expected = CostModel(graph.shrink(first_channels(losses)))
    more = {f"l{g}": data.draw(st.integers(0, n - m)) for g, (n, m) in enumerate(zip(sizes, losses, strict=True))}
    assert (after.now, after.dense, after.at(more)) == (expected.now, expected.dense, expected.at(more))
    assert after.sizes.tolist() == expected.sizes.tolist()
    assert after.saved_per_channel("flops") == expected.saved_per_channel("flops")
    assert before.sizes.tolist() == sizes
    assert before.now == before.at({})


@given(widths_and_losses())
def test_the_dense_cost_is_remembered_by_a_shrunk_graph(make_graph, plain_cost, case):
    sizes, spans, work, losses = case
    graph = make_graph(sizes, spans, work)
    assert CostModel(graph.shrink(first_channels(losses))).dense == plain_cost(graph)


@given(widths_and_losses())
def test_flops_per_channel_is_what_one_removal_saves(make_graph, plain_cost, case):
    sizes, spans, work, losses = case
    graph = make_graph(sizes, spans, work).shrink(first_channels(losses))
    saved = CostModel(graph).saved_per_channel("flops")
    for name, group in graph.groups.items():
        if group.size > 1:
            assert saved[name] == plain_cost(graph).flops - plain_cost(graph.shrink({name: [0]})).flops


def test_unknown_groups_and_impossible_counts_are_refused(make_graph):
    model = CostModel(make_graph([4, 4]))
    with pytest.raises(ValueError, match="no channel group 'conv9'"):
        model.at({"conv9": 1})
    with pytest.raises(ValueError, match="'l1' has 4 channels and cannot lose 5"):
        model.at({"l1": 5})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "googlenet"])
def test_costs_equal_those_of_the_really_sliced_network(name):
    kwargs = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = models.get_model(name, num_classes=10, **kwargs).eval()
    graph = trace_channels(model, torch.randn(SMALL_INPUT), verify=False)  # what is costed is not proven here
    assert_equal_costs(model, graph, graph)
    remove = graph.sample(0.3, torch.Generator().manual_seed(0))
    assert remove
    assert_equal_costs(sliced(model, graph, remove), graph.shrink(remove), graph)
    counts = {group: len(indices) for group, indices in remove.items()}
    assert CostModel(graph).at(counts) == CostModel(graph.shrink(remove)).now


def assert_equal_costs(model, graph, dense_graph):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, *SMALL_INPUT[1:]))
    cost = CostModel(graph)
    assert cost.now.flops == counter.get_total_flops()
    assert cost.now.params == sum(p.numel() for p in model.parameters())
    assert cost.now.channels == sum(group.size for group in graph.groups.values())
    assert cost.dense == CostModel(dense_graph).now


def sliced(model: nn.Module, graph, remove) -> nn.Module:
    """A copy without the removed channels, cut by hand: enough to run a forward pass."""
    model = copy.deepcopy(model)
    for (tensor, dim), kept in graph.keep(remove).items():
        owner, _, name = tensor.rpartition(".")
        module = model.get_submodule(owner)
        value = getattr(module, name).detach().index_select(dim, kept)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(value)
        else:
            module._buffers[name] = value
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.groups = len(module.weight)
    return model
