"""Every optimizer goes on with the survivors as if the others had only been masked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import Optimizer

from lightning_taylor.errors import OptimizerStateError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.surgery.optimizer_state import check_state
from lightning_taylor.surgery.prune import prune_channels

from .nets import Chain, Perceptron, Residual, Words, batches, build
from .reference import lost, mask, named_state, named_tensors, snapshot, train, without

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "foreach": True},
        {"lr": 0.1, "momentum": 0.9, "fused": True},
    ],
    "Adam": [{}, {"amsgrad": True}, {"foreach": True, "weight_decay": 0.01}, {"fused": True, "amsgrad": True}],
    "AdamW": [{}, {"amsgrad": True, "foreach": True}, {"fused": True}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9}, {"foreach": True, "momentum": 0.9}],
    "Adagrad": [{}, {"foreach": True}, {"fused": True}],
    "Adadelta": [{}, {"foreach": True}],
    "Adamax": [{}, {"foreach": True}],
    "NAdam": [{}, {"foreach": True, "decoupled_weight_decay": True, "weight_decay": 0.01}],
    "RAdam": [{}, {"foreach": True}],
    "ASGD": [{"t0": 2}, {"t0": 2, "foreach": True}],
    "Rprop": [{}, {"foreach": True}],
    "LBFGS": [{"max_iter": 3}, {"max_iter": 3, "line_search_fn": "strong_wolfe"}],
    "SparseAdam": [{"lr": 0.01}],
}
# Their step of one entry depends on the whole tensor: on its root mean square, and on its singular vectors.
MIXING: dict[str, dict[str, Any]] = {"Adafactor": {"lr": 0.05}, "Muon": {"lr": 0.05}}
MIXING = {name: kwargs for name, kwargs in MIXING.items() if hasattr(torch.optim, name)}  # torch has Muon since 2.9
CASES = [(name, kwargs) for name, variants in VARIANTS.items() for kwargs in variants]


def optimizers_of(model: nn.Module, name: str, kwargs: dict[str, Any]) -> list[Optimizer]:
    """The optimizer over what it can take, in two parameter groups if it can; plain SGD for the rest."""
    cls = getattr(torch.optim, name)
    parameters = list(model.parameters())
    if name == "LBFGS":
        return [cls(parameters, **kwargs)]
    if name == "SparseAdam":
        return [cls(parameters[:1], **kwargs), torch.optim.SGD(parameters[1:], lr=0.1, momentum=0.9)]
    mine = [p for p in parameters if p.ndim == 2] if name == "Muon" else parameters
    rest = [p for p in parameters if not any(p is q for q in mine)]
    first = cls([{"params": mine[:2]}, {"params": mine[2:], "weight_decay": 0.02}], **kwargs)
    return [first, torch.optim.SGD(rest, lr=0.1)] if rest else [first]


def networks_for(name: str) -> list[type]:
    return {"SparseAdam": [Words], "Muon": [Perceptron]}.get(name, [Chain, Residual])


def pruned_and_twin(
    cls: type, name: str, kwargs: dict[str, Any]
) -> tuple[nn.Module, list[Optimizer], nn.Module, list[Optimizer], ChannelGraph, dict[str, torch.Tensor]]:
    """Three steps, the event, three steps; and the same with a masked dense network."""
    model, twin = build(cls), build(cls)
    mine, theirs = optimizers_of(model, name, kwargs), optimizers_of(twin, name, kwargs)
    graph = model.graph()
    remove = graph.sample(0.4, torch.Generator().manual_seed(3))
    data = batches(model, 6)
    for net, optimizers in ((model, mine), (twin, theirs)):
        train(net, optimizers, data[:3], {})
    consumers = lost(graph, remove, Role.CONSUMER)
    mask(twin, consumers)
    if name == "LBFGS":
        theirs = optimizers_of(twin, name, kwargs)
    prune_channels(model, graph, remove, optimizers=mine)
    train(model, mine, data[3:], {})
    train(twin, theirs, data[3:], consumers)
    return model, mine, twin, theirs, graph, remove


def test_the_table_has_every_optimizer_of_torch() -> None:
    classes = {n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, Optimizer)}
    assert classes - {"Optimizer"} == {*VARIANTS, *MIXING}


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=str)
def test_survivors_train_on_like_the_masked_dense_twin(name: str, kwargs: dict[str, Any]) -> None:
    for cls in networks_for(name):
        model, mine, twin, theirs, graph, remove = pruned_and_twin(cls, name, kwargs)
        gone, dense = lost(graph, remove), graph.dense
        expected = {n: without(t, gone.get(n, {})) for n, t in named_tensors(twin).items()}
        torch.testing.assert_close(named_tensors(model), expected, rtol=1e-9, atol=1e-11)
        if name != "LBFGS":
            state = named_state(twin, theirs)
            expected_state = {k: without(v, gone.get(k[1], {}), dense[k[1]]) for k, v in state.items()}
            torch.testing.assert_close(named_state(model, mine), expected_state, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MIXING)
def test_optimizers_that_mix_entries_train_on_near_the_masked_twin(name: str) -> None:
    for cls in networks_for(name):
        model, _, twin, _, graph, remove = pruned_and_twin(cls, name, MIXING[name])
        gone, found = lost(graph, remove), named_tensors(model)
        apart = [(found[n] - without(t, gone.get(n, {}))).abs().max().item() for n, t in named_tensors(twin).items()]
        # Not equal, by the nature of the optimizer; closer than the three steps of about lr since the event reach.
        assert 1e-6 < max(apart) < 3 * MIXING[name]["lr"]


@pytest.mark.parametrize(("name", "kwargs"), [*CASES, *MIXING.items()], ids=str)
def test_state_and_its_dicts_stay_in_place_and_lose_the_same_axes(name: str, kwargs: dict[str, Any]) -> None:
    for cls in networks_for(name):
        model = build(cls)
        optimizers = optimizers_of(model, name, kwargs)
        train(model, optimizers, batches(model, 3), {})
        graph = model.graph()
        remove = graph.sample(0.4, torch.Generator().manual_seed(3))
        gone = lost(graph, remove)
        before = copy.deepcopy(named_state(model, optimizers))
        dicts = [(id(p), id(s)) for o in optimizers for p, s in o.state.items()]
        groups = [[id(p) for p in g["params"]] for o in optimizers for g in o.param_groups]
        prune_channels(model, graph, remove, optimizers=optimizers)
        assert [(id(p), id(s)) for o in optimizers for p, s in o.state.items()] == dicts
        assert [[id(p) for p in g["params"]] for o in optimizers for g in o.param_groups] == groups
        if name == "LBFGS":
            assert [dict(s) for s in optimizers[0].state.values()] == [{}]
            continue
        expected = {k: without(v, gone.get(k[1], {}), graph.dense[k[1]]) for k, v in before.items()}
        torch.testing.assert_close(named_state(model, optimizers), expected, rtol=0, atol=0)


class Strange(torch.optim.SGD):
    """Keeps whatever it is told to, beside the momentum."""

    def __init__(self, model: nn.Module, make: Any) -> None:
        super().__init__(model.parameters(), lr=0.1, momentum=0.9)
        for p in model.parameters():
            self.state[p]["strange"] = make(p)


STRANGE = {
    "a Gram matrix": lambda p: torch.zeros(p.shape[0], p.shape[0]),
    "a list of tensors": lambda p: [torch.zeros_like(p)],
    "a dict of tensors": lambda p: {"deep": (torch.zeros_like(p),)},
    "one dimension less": lambda p: torch.zeros(p.shape[:-1] or (3,)),
    "twice as long": lambda p: torch.zeros(2 * p.shape[0], *p.shape[1:]),
    "sparse": lambda p: torch.zeros_like(p).to_sparse(),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_unknown_state_is_an_error_that_touches_nothing(make: Any) -> None:
    model = build(Perceptron)
    optimizers = [torch.optim.Adam(model.parameters()), Strange(model, make)]
    train(model, optimizers, batches(model, 1), {})
    graph = model.graph()
    strange = {p: s.pop("strange") for p, s in optimizers[1].state.items()}
    before = snapshot(model, optimizers)
    for p, value in strange.items():
        optimizers[1].state[p]["strange"] = value
    with pytest.raises(
        OptimizerStateError, match=r"Strange keeps 'strange' .* for parameter 'a.weight' .*drop_unknown"
    ):
        prune_channels(model, graph, {"a": [0, 2]}, optimizers=optimizers)
    for state in optimizers[1].state.values():
        assert state.pop("strange") is not None
    assert snapshot(model, optimizers) == before


def test_a_square_preconditioner_is_not_taken_for_a_moment() -> None:
    torch.manual_seed(0)
    model = build(Perceptron)
    optimizer = Strange(model, lambda p: torch.zeros(p.shape[0], p.shape[0]) if p.ndim == 2 else 0)
    square = model.a.weight.new_zeros(8, 8)
    model.a = nn.Linear(8, 8, dtype=torch.float64)
    optimizer.param_groups[0]["params"][0] = model.a.weight
    optimizer.state[model.a.weight] = {"strange": square}
    graph = model.graph()
    with pytest.raises(OptimizerStateError, match=r"'a.weight' of shape \(8, 8\)"):
        prune_channels(model, graph, {"a": [1]}, optimizers=[optimizer])


class Factored(Strange):
    """Rows and columns of second moments, squeezed; those of a vector are whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, lambda p: p.detach().clone() if p.ndim < 2 else p.detach().mean(-1))
        for p in model.parameters():
            if p.ndim > 1:
                self.state[p]["columns"] = p.detach().mean(-2)


def test_rows_and_columns_of_second_moments_lose_the_channels_of_their_side() -> None:
    for cls in (Perceptron, Chain):
        model = build(cls)
        optimizer, names = Factored(model), {p: name for name, p in model.named_parameters()}
        check_state(optimizer, names)
        graph = model.graph()
        remove = graph.sample(0.4, torch.Generator().manual_seed(1))
        prune_channels(model, graph, remove, optimizers=[optimizer])
        for p in model.parameters():
            kept = optimizer.state[p]["strange"], optimizer.state[p].get("columns")
            assert kept[0].shape == (p.shape if p.ndim < 2 else p.shape[:-1])
            assert kept[1] is None or kept[1].shape == p.shape[:-2] + p.shape[-1:]


def test_whether_a_vector_is_of_rows_or_of_columns_is_told_by_a_weight_that_is_not_square() -> None:
    """Without one nobody knows, and nothing is guessed."""
    for width, known in ((4, True), (8, False)):
        net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, width, bias=False))
        optimizer = Strange(net, lambda p: p.detach().mean(-1))
        names = {p: name for name, p in net.named_parameters()}
        if known:
            check_state(optimizer, names)
            continue
        with pytest.raises(OptimizerStateError, match=r"'strange' \(shape \(8,\)\) for parameter '0.weight'"):
            check_state(optimizer, names)


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_unknown_state_is_noticed_before_anything_is_to_go(make: Any) -> None:
    model = build(Perceptron)
    names = {model.a.weight: "a.weight"}
    check_state(torch.optim.Adam(model.parameters()), names)
    with pytest.raises(OptimizerStateError, match=r"Strange keeps 'strange' .* use an optimizer .* SGD or AdamW"):
        check_state(Strange(model, make), names)
    check_state(Strange(model, make), {})


def test_unknown_state_can_be_dropped_for_its_parameters_only() -> None:
    model = build(Perceptron)
    optimizer = Strange(model, lambda p: [torch.zeros_like(p)] if p.ndim == 2 else 7)
    train(model, [optimizer], batches(model, 1), {})
    prune_channels(model, model.graph(), {"a": [0]}, optimizers=[optimizer], drop_unknown_state=True)
    kept = {n for n, p in model.named_parameters() if optimizer.state[p]}
    assert kept == {"a.bias", "b.bias", "head.weight", "head.bias"}
    train(model, [optimizer], batches(model, 1), {})


def test_plain_values_in_the_state_stay() -> None:
    model = build(Perceptron)
    optimizer = Strange(model, lambda p: {"calls": [1, 2], "name": "p", "none": None, "one": torch.ones(1)})
    prune_channels(model, model.graph(), {"a": [0]}, optimizers=[optimizer])
    assert all(s["strange"]["calls"] == [1, 2] for s in optimizer.state.values())


def test_lightning_wrappers_reach_the_optimizer_inside() -> None:
    for name, kwargs in (("Adam", {}), ("LBFGS", {"max_iter": 3})):
        model = build(Perceptron)
        inside = optimizers_of(model, name, kwargs)
        data = batches(model, 6)
        train(model, inside, data[:3], {})
        prune_channels(model, model.graph(), {"a": [0]}, optimizers=[LightningOptimizer(inside[0]), inside[0]])
        train(model, inside, data[3:], {})
        assert all(s["exp_avg"].shape == p.shape for p, s in inside[0].state.items() if "exp_avg" in s), (
            "the state follows its parameter"
        )


def test_something_else_is_no_optimizer() -> None:
    model = build(Perceptron)
    with pytest.raises(ValueError, match="torch optimizers, got Linear"):
        prune_channels(model, model.graph(), {"a": [0]}, optimizers=[model.head])


def test_optimizers_of_other_parameters_are_left_alone() -> None:
    model, other = build(Perceptron), build(Perceptron, seed=5)
    for cls in (torch.optim.Adam, torch.optim.LBFGS):
        optimizer = cls(other.parameters())
        train(other, [optimizer], batches(other, 2), {})
        before = snapshot(other, [optimizer])
        keys = list(optimizer.state)
        copied = copy.deepcopy(model)
        prune_channels(copied, copied.graph(), {"a": [0]}, optimizers=[optimizer])
        assert snapshot(other, [optimizer]) == before
        assert list(map(id, optimizer.state)) == list(map(id, keys))
