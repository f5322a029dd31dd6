"""What the coordinates of heads are worth: no weight reads queries, so they are watched where they are made."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from scores.gates import assert_same, contributions, scored, train_batch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo_heads import SPREAD, build_spread

from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.study.score_batches import every_criterion
from lightning_taylor.trace.api import trace_channels

from .test_obd import hessian, run, split

CRITERIA = every_criterion(probes=1)


def case(name: str) -> tuple[nn.Module, ChannelGraph, Tensor, list[str]]:
    model, x = build_spread(name)
    graph = trace_channels(model, x, attention_heads="spread")
    return model, graph, x, [n for n, group in graph.groups.items() if group.of(Role.QUERY)]


@pytest.mark.parametrize("name", SPREAD)
def test_scores_equal_the_gates_of_single_examples(name: str) -> None:
    model, graph, x, products = case(name)
    found = scored(Taylor(), model, graph, x)
    assert_same({n: found[n] for n in products}, {n: contributions(model, graph, n, x).abs().mean(0) for n in products})


@pytest.mark.parametrize("name", SPREAD)
def test_scores_of_batches_equal_the_squared_gate(name: str) -> None:
    model, graph, x, products = case(name)
    found = scored(TaylorBatch(), model, graph, x)
    expected = {n: contributions(model, graph, n, x).mean(0).square() for n in products}
    assert_same({n: found[n] for n in products}, expected, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in SPREAD if n not in ("swin", "swin_v2", "maxvit")])
def test_a_gate_on_the_keys_would_say_the_same(name: str) -> None:
    """Where products are plain ones: a cosine is divided by the lengths of both."""
    model, graph, x, products = case(name)
    for n in products:
        group = graph.groups[n]
        other = {Role.QUERY: Role.KEY, Role.KEY: Role.QUERY}
        swapped = type(group)(
            n, tuple(type(s)(s.tensor, s.dim, s.index, other.get(s.role, s.role)) for s in group.slices)
        )
        mirrored = type(graph)(**{**vars(graph), "groups": {**graph.groups, n: swapped}})
        one, two = (contributions(model, g, n, x) for g in (graph, mirrored))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stock_weights", "own", "own_three", "non_local"])
def test_a_probe_of_obd_is_a_product_with_the_hessian(name: str) -> None:
    model, graph, x, products = case(name)
    exact = hessian(model, graph, x).diagonal()
    with sdpa_kernel(SDPBackend.MATH):
        found = run(OBD(probes=400, seed=1), model, graph, x)
    for n in products:
        expected = split(graph, exact)[n].abs() if (found[n] >= 0).all() else split(graph, exact)[n]
        assert float(torch.corrcoef(torch.stack([found[n].double(), expected]))[0, 1]) > 0.9


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
@pytest.mark.parametrize("name", ["stock", "own_three_fused", "swin_v2", "non_local"])
def test_every_criterion_scores_them_and_leaves_nothing_on_the_model(name: str, criterion: Criterion) -> None:
    model, graph, x, products = case(name)
    names, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    with sdpa_kernel(SDPBackend.MATH):
        scorer = criterion.scorer(model, graph)
        assert not set(scorer.unscorable) & set(products)
        assert list(model.state_dict()) == names
        scorer.on_batch((x, torch.zeros(len(x), dtype=torch.int64)))
        train_batch(model, scorer, x) if not isinstance(criterion, OBD) else run(criterion, model, graph, x)
        pickle.dumps(copy.deepcopy(model))
        scorer.close()
    assert list(model.state_dict()) == names
    assert [type(m) for m in model.modules()] == kinds
    assert [sorted(vars(m)) for m in model.modules()] == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
