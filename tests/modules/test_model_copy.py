"""A private copy survives whatever its users keep on a module, and leaves the module alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.modules.model_copy import private_copy
from lightning_taylor.utilities.calls import tensors_in


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@dataclasses.dataclass
class Kept:
    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    value: Any


class Keeps:
    """A plain object with a method for a hook."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def hook(self, *_: object) -> None: ...


PLACES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda v: v,
    "dict": lambda v: {"x": v},
    "list in a dict": lambda v: {"x": [v]},
    "tuple": lambda v: (v, 1),
    "namespace": lambda v: SimpleNamespace(x=v),
    "dataclass": Kept,
    "slots": Slotted,
    "object": Keeps,
    "bound method": lambda v: Keeps(v).hook,
    "partial": lambda v: functools.partial(print, v),
}


def place(net: Net, name: str, value: Any) -> None:
    setattr(net.first, name, value)


def kept_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, functools.partial):
        return list(tensors_in(value.args))
    return list(tensors_in(getattr(value, "__self__", value)))


@pytest.mark.parametrize("name", ["features", "_features", "__features"])
@pytest.mark.parametrize("put", PLACES.values(), ids=PLACES)
def test_a_tensor_with_a_graph_is_detached_wherever_it_is(put: Callable[[Any], Any], name: str) -> None:
    net, x = Net(), torch.rand(2, 3)
    cached = net.first(x)
    place(net, name, put(cached))
    copied: Any = private_copy(net)
    (other,) = kept_tensors(getattr(copied.first, name))
    assert other.grad_fn is None
    assert torch.equal(other, cached)
    assert other.data_ptr() != cached.data_ptr()
    assert kept_tensors(getattr(net.first, name))[0] is cached
    assert cached.grad_fn is not None


def test_buffers_and_gradients_with_a_graph_are_left_behind() -> None:
    net, x = Net(), torch.rand(2, 3)
    net.first.register_buffer("mean", net.first(x).mean(0))
    net.probe = torch.ones(2, requires_grad=True)
    loss = net(x).square().sum() * net.probe.sum()
    leaves = [*net.parameters(), net.probe]
    for leaf, grad in zip(leaves, torch.autograd.grad(loss, leaves, create_graph=True), strict=True):
        leaf.grad = grad
    grads = [p.grad for p in net.parameters()]
    copied: Any = private_copy(net)
    assert copied.first.mean.grad_fn is None
    assert copied.probe.grad is None
    assert all(p.grad is None for p in copied.parameters())
    assert all(p.grad is grad for p, grad in zip(net.parameters(), grads, strict=True))
    assert net.probe.grad is not None
    for leaf in leaves:
        leaf.grad = None  # it has a graph through the leaf itself


def test_metrics_called_in_the_step_are_copied() -> None:
    net, x = Net(), torch.rand(2, 3)
    net.seen = torchmetrics.MeanMetric()
    net.many = torchmetrics.MetricCollection([torchmetrics.CatMetric(), torchmetrics.SumMetric()])
    loss = net(x).square().sum()
    net.seen(loss), net.many(loss)
    copied: Any = private_copy(net)
    torch.testing.assert_close(copied.seen.compute(), loss.detach())
    copied.seen.reset()
    torch.testing.assert_close(net.seen.compute(), loss.detach(), check_stride=False)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_old_reparametrizations_compute_on_in_the_copy(norm: Callable[[nn.Module], nn.Module]) -> None:
    net, x = Net(), torch.rand(2, 3)
    norm(net.first)
    before = net(x)
    copied = private_copy(net.eval())
    torch.testing.assert_close(copied(x), net(x))
    copied(x).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert before.grad_fn is not None


def generator() -> Iterator[int]:
    yield 1


def process_locks() -> Any:
    return SimpleNamespace(lock=threading.Lock(), again=threading.RLock(), event=threading.Event())


LEFT_OUT: dict[str, Callable[[], Any]] = {
    "generator": generator,
    "thread": threading.Thread,
    "file": lambda: open(__file__),  # noqa: SIM115
    "socket": socket.socket,
    "iterator of a memory": lambda: memoryview(b"x"),
    "iterator of a loader": lambda: iter(DataLoader(torch.zeros(2, 1))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("put", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("make", LEFT_OUT.values(), ids=LEFT_OUT)
def test_handles_of_the_system_are_left_out(make: Callable[[], Any], put: Callable[[Any], Any]) -> None:
    net, handle = Net(), make()
    place(net, "_handle", put(handle))
    copied: Any = private_copy(net)
    other = copied.first._handle
    if put is PLACES["plain"]:
        assert other is None
    if put is PLACES["dict"]:
        assert other == {"x": None}
    x = torch.rand(1, 3)
    torch.testing.assert_close(copied(x), net(x))
    if hasattr(handle, "close"):
        handle.close()


def test_a_lock_is_a_new_one_that_nobody_holds() -> None:
    net: Any = Net()
    net.locks = process_locks()
    with net.locks.lock, net.locks.again:
        copied: Any = private_copy(net)
        assert copied.locks.lock.acquire(blocking=False)
    assert not copied.locks.event.is_set()


def test_loggers_data_sets_and_owners_of_something_are_shared() -> None:
    class Owner:
        closed = 0

        def __del__(self) -> None:
            Owner.closed += 1

    net: Any = Net()
    net.log_, net.text = logging.Logger("nowhere"), io.StringIO("kept")
    net.data, net.owner, net.module_ = torch.utils.data.TensorDataset(torch.ones(2)), Owner(), torch
    net.random = torch.Generator().manual_seed(3)
    copied: Any = private_copy(net)
    assert (copied.log_, copied.data, copied.owner, copied.module_) == (net.log_, net.data, net.owner, torch)
    assert copied.text.getvalue() == "kept"
    assert copied.random is not net.random
    assert torch.equal(torch.rand(2, generator=copied.random), torch.rand(2, generator=net.random))
    del copied
    assert Owner.closed == 0


def test_who_trains_the_module_is_not_copied() -> None:
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

    class Tied(L.Trainer):
        def __deepcopy__(self, memo: object) -> None:
            raise AssertionError("the Trainer was copied")

    module, trainer = Module(), Tied(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    module.trainer = trainer
    module.friend = {"trainer": trainer}
    copied: Any = private_copy(module)
    assert copied._trainer is None
    assert copied.friend == {"trainer": None}
    assert module._trainer is trainer


def test_functions_on_the_copy_see_the_copy() -> None:
    net, x = Net(), torch.rand(2, 3)
    net.features = {}
    net.scaled = lambda y: net.second(y)
    net.first.register_forward_hook(lambda m, a, out: net.features.update(first=out))
    net(x)
    kept = net.features["first"]
    copied: Any = private_copy(net)
    copied(x + 1)
    assert net.features["first"] is kept
    assert torch.equal(copied.features["first"], copied.first(x + 1))
    with torch.no_grad():
        copied.second.weight.zero_(), copied.second.bias.zero_()
    assert not copied.scaled(torch.ones(4)).any()
    assert net.scaled(torch.ones(4)).any()


class Stubborn:
    def __call__(self, *_: object) -> None: ...

    def __reduce__(self) -> Any:
        raise TypeError("Stubborn will not be copied")


def test_what_cannot_be_copied_all_the_same_is_named() -> None:
    net: Any = Net()
    net.second.held = [Stubborn()]
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(UnsupportedModelError, match=r"second\.held raises TypeError.*Keep it off the module"):
        private_copy(net)
    torch.testing.assert_close(net.state_dict(), state)
    del net.second.held
    net.first.register_forward_hook(Stubborn())
    with pytest.raises(UnsupportedModelError, match=r"first\._forward_hooks raises TypeError"):
        private_copy(net)


def _by_lambda(net: Net) -> None:
    old = net.forward
    net.forward = lambda x: 2 * old(x)  # type: ignore[method-assign]


def _twice(net: Net) -> None:
    _by_lambda(net)
    _by_lambda(net)


def _of_a_part(net: Net) -> None:
    old = net.second.forward
    net.second.forward = lambda x: 2 * old(x)  # type: ignore[method-assign]


def _by_keyword(net: Net) -> None:
    def forward(x: Tensor, *, old: Callable[[Tensor], Tensor] = net.forward) -> Tensor:
        return 2 * old(x)

    net.forward = forward  # type: ignore[method-assign]


def _calling_itself(net: Net) -> None:
    def forward(x: Tensor, left: int = 1) -> Tensor:
        return forward(x, left - 1) if left else 2 * net.second(net.first(x))

    net.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("patch", [_by_lambda, _twice, _of_a_part, _by_keyword, _calling_itself])
def test_a_forward_that_was_patched_on_the_instance_runs_the_copy(patch: Callable[[Net], None]) -> None:
    net, x = Net(), torch.rand(5, 3)
    patch(net)
    copied = private_copy(net)
    torch.testing.assert_close(copied(x), net(x))
    for parameter in copied.parameters():
        parameter.detach().zero_()
    assert not copied(x).any()
    assert net(x).any()


def _wrapped(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # type: ignore[return-value]


def _in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def _on_the_instance(net: nn.Module) -> nn.Module:
    net.forward = torch.compile(net.forward, backend="eager")  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("compiled", [_wrapped, _in_place, _on_the_instance])
@pytest.mark.parametrize("make", [Net, lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))], ids=["own", "torch's"])
def test_the_copy_of_a_compiled_module_runs_the_copy(
    make: Callable[[], nn.Module], compiled: Callable[[nn.Module], nn.Module]
) -> None:
    holder, x = nn.ModuleList([compiled(make())]), torch.rand(5, 3)
    copied = private_copy(holder)[0]  # type: ignore[index]
    torch.testing.assert_close(copied(x), holder[0](x))
    for parameter in copied.parameters():
        parameter.detach().zero_()
    assert not copied(x).any()
    assert holder[0](x).any()
