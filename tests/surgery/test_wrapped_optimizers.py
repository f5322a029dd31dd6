"""Optimizers around optimizers: found whatever they are called, and cut wherever they keep a parameter's copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_taylor.errors import OptimizerStateError
from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.surgery.snapshot import Snapshot
from lightning_taylor.surgery.wrapped_optimizers import check_optimizers, held_by, unwrapped
from lightning_taylor.utilities.plain import from_plain, to_plain

from .nets import Perceptron, Residual, batches, build
from .reference import lost, named_state, train, without

NAMES = ("optimizer", "base_optimizer", "_base_optimizer", "optim", "whatever")


class Lookahead(Optimizer):
    """Slow copies in the wrapper's own state; they are pulled along every second step."""

    def __init__(self, inner: Optimizer, name: str = "_base_optimizer") -> None:
        super().__init__(inner.param_groups, {})
        self.name, self.steps = name, 0
        setattr(self, name, inner)
        self.begin()

    def parameters(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def begin(self) -> None:
        for p in self.parameters():
            self.state[p]["slow"] = p.detach().clone()

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((p, self.state[p]["slow"]) for p in self.parameters())

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = getattr(self, self.name).step(closure)
        self.steps += 1
        if self.steps % 2 == 0:
            for p, slow in self.pairs():
                slow.lerp_(p, 0.5)
                p.copy_(slow)
        return loss


class InBareState(Lookahead):
    def begin(self) -> None:
        self.state.update({p: p.detach().clone() for p in self.parameters()})

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((p, self.state[p]) for p in self.parameters())


class InDict(Lookahead):
    def begin(self) -> None:
        self.slow = {p: p.detach().clone() for p in self.parameters()}

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.slow.items())


class InDictOfDicts(Lookahead):
    def begin(self) -> None:
        self.more: Any = defaultdict(dict)
        for p in self.parameters():
            self.more[p] |= {"slow": p.detach().clone(), "step": 0}

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((p, kept["slow"]) for p, kept in self.more.items())


class InNamedState(Lookahead):
    """State under a name of its own, and only there keyed by the parameters."""

    def begin(self) -> None:
        self.state["own"] = {"slow": {p: p.detach().clone() for p in self.parameters()}, "sizes": [1, 2]}

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.state["own"]["slow"].items())


class InList(Lookahead):
    def begin(self) -> None:
        self.slow = [p.detach().clone() for p in self.parameters()]

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.parameters(), self.slow, strict=True)


class InListsOfGroups(Lookahead):
    def begin(self) -> None:
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.parameters(), [t for slow in self.slow for t in slow], strict=True)


class InGroups(Lookahead):
    def begin(self) -> None:
        for group in self.param_groups:
            group["slow"] = [p.detach().clone() for p in group["params"]]

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.parameters(), [t for group in self.param_groups for t in group["slow"]], strict=True)


class Bare(Lookahead):
    """Does not call torch's constructor, as some do not, and has no state."""

    def __init__(self, inner: Optimizer, name: str = "optim") -> None:
        self.name, self.steps, self.slow = name, 0, {}
        self.param_groups, self.defaults = inner.param_groups, {}
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        setattr(self, name, inner)
        self.slow = {p: p.detach().clone() for p in self.parameters()}

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.slow.items())


class ScheduleFree(torch.optim.SGD):
    """No wrapper: z beside the parameter."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("z", p.detach().clone()).add_(p.grad, alpha=-0.1)
        return loss


KINDS = (Lookahead, InBareState, InDict, InDictOfDicts, InNamedState, InList, InListsOfGroups, InGroups)


def adam(net: nn.Module) -> Optimizer:
    parameters = list(net.parameters())
    return torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.1}], 1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_is_found_whatever_its_attribute_is_called(name: str) -> None:
    inner = adam(build(Perceptron))
    wrapper = Lookahead(Lookahead(inner, name), name)
    assert list(unwrapped([wrapper, inner])) == [inner, getattr(wrapper, name), wrapper]


def test_optimizers_in_lists_and_dicts_and_circles_are_found_once() -> None:
    a, b = adam(build(Perceptron)), adam(build(Perceptron))
    chained: Any = Lookahead(a)
    chained.others, chained.named, a.owner = [a, b], {"b": b}, chained  # type: ignore[attr-defined]
    assert list(unwrapped([chained])) == [a, b, chained]


@pytest.mark.parametrize("kind", KINDS)
def test_slow_copies_lose_the_channels_wherever_they_are_kept(kind: Callable[[Optimizer], Lookahead]) -> None:
    for cls in (Perceptron, Residual):
        net = build(cls)
        wrapper = kind(adam(net))
        train(net, [wrapper], batches(net, 3), {})
        graph = net.graph()  # type: ignore[operator]
        remove = graph.sample(0.4, torch.Generator().manual_seed(3))
        gone, names = lost(graph, remove), {p: name for name, p in net.named_parameters()}
        expected = {names[p]: without(slow.clone(), gone.get(names[p], {})) for p, slow in wrapper.pairs()}
        prune_channels(net, graph, remove, optimizers=[wrapper])
        torch.testing.assert_close({names[p]: slow for p, slow in wrapper.pairs()}, expected, rtol=0, atol=0)
        train(net, [wrapper], batches(net, 3), {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_brings_slow_copies_back(kind: Callable[[Optimizer], Lookahead]) -> None:
    net = build(Perceptron)
    wrapper = kind(adam(net))
    train(net, [wrapper], batches(net, 3), {})
    before = [slow.clone() for _, slow in wrapper.pairs()]
    snapshot = from_plain(Snapshot, to_plain(Snapshot.take(net, [wrapper])))
    prune_channels(net, net.graph(), {"a": [0, 3]}, optimizers=[wrapper])  # type: ignore[operator]
    train(net, [wrapper], batches(net, 2), {})
    snapshot.restore(net, [wrapper])
    torch.testing.assert_close([slow for _, slow in wrapper.pairs()], before, rtol=0, atol=0)
    train(net, [wrapper], batches(net, 2), {})


def test_a_wrapper_without_torchs_constructor_still_leads_to_the_optimizer_inside() -> None:
    net = build(Perceptron)
    wrapper = Bare(adam(net))
    train(net, [wrapper.optim], batches(net, 2), {})  # type: ignore[attr-defined]
    prune_channels(net, net.graph(), {"a": [0]}, optimizers=[wrapper])  # type: ignore[operator]
    assert all(slow.shape == p.shape for p, slow in wrapper.pairs())
    train(net, [wrapper.optim], batches(net, 2), {})  # type: ignore[attr-defined]


class Formed:
    """Of an optimizer's form and not of its class, as a schedule without a schedule may be wrapped."""

    def __init__(self, base: Optimizer) -> None:
        self.base, self.defaults = base, {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @property
    def state(self) -> Any:
        return self.base.state

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


def test_what_has_only_the_form_of_an_optimizer_leads_to_the_one_inside() -> None:
    net = build(Perceptron)
    inner = adam(net)
    wrapper: Any = Formed(inner)
    assert list(unwrapped([wrapper])) == [inner]
    train(net, [inner], batches(net, 2), {})
    prune_channels(net, net.graph(), {"a": [0]}, optimizers=[wrapper])  # type: ignore[operator]
    train(net, [inner], batches(net, 2), {})
    scheduler = torch.optim.lr_scheduler.StepLR(inner, 1)
    with pytest.raises(ValueError, match="must hold torch optimizers, got StepLR"):
        list(unwrapped([scheduler]))  # type: ignore[list-item]


def test_a_buffer_beside_the_parameter_follows() -> None:
    net = build(Perceptron)
    optimizer = ScheduleFree(net.parameters(), lr=0.1, momentum=0.9)
    train(net, [optimizer], batches(net, 2), {})
    prune_channels(net, net.graph(), {"a": [0, 1]}, optimizers=[optimizer])  # type: ignore[operator]
    train(net, [optimizer], batches(net, 2), {})
    assert all(value.shape == optimizer_shape(net, key) for key, value in named_state(net, [optimizer]).items())


def optimizer_shape(net: nn.Module, key: Any) -> torch.Size:
    return net.get_parameter(key[1]).shape


def test_what_runs_beside_the_parameters_with_other_shapes_is_not_taken_for_a_copy() -> None:
    net = build(Perceptron)
    optimizer: Any = adam(net)
    optimizer.parameters, optimizer.sizes = list(net.parameters()), [torch.ones(2) for _ in net.parameters()]
    assert list(held_by(optimizer)) == []


def test_a_keyed_tensor_of_another_form_is_refused_and_nothing_changes() -> None:
    net = build(Perceptron)
    optimizer: Any = adam(net)
    optimizer.factors = {p: torch.zeros(p.shape[0], p.shape[0]) for p in net.parameters()}
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(OptimizerStateError, match=r"AdamW keeps 'factors\[0\]\.' \(shape \(8, 8\)\) .*'a.weight'"):
        prune_channels(net, net.graph(), {"a": [0]}, optimizers=[optimizer])  # type: ignore[operator]
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


class Shampoo(torch.optim.SGD):
    """Only its name matters here."""


class ZeroRedundancyOptimizer(torch.optim.SGD):
    pass


class Derived(Shampoo):
    pass


@pytest.mark.parametrize("kind", [Shampoo, ZeroRedundancyOptimizer, Derived])
def test_optimizers_that_cannot_follow_are_refused_by_name_also_inside_of_others(kind: type[torch.optim.SGD]) -> None:
    net = build(Perceptron)
    check_optimizers([adam(net), Lookahead(adam(net))])
    with pytest.raises(OptimizerStateError, match=f"{kind.__name__} cannot follow a pruning: .*such as SGD, AdamW"):
        check_optimizers([adam(net), Lookahead(kind(net.parameters(), lr=0.1))])
