"""All or nothing, whatever raises and whatever signal comes."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.surgery.transaction import Transaction
from lightning_taylor.utilities.atomic import signals_deferred

from .nets import Chain, Residual, batches, build
from .reference import named_tensors, snapshot, train


class Injected(BaseException):
    """Not even an Exception, as KeyboardInterrupt is not."""


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.LBFGS])
@pytest.mark.parametrize("cls", [Chain, Residual])
def test_an_error_at_any_step_leaves_everything_as_it_was(
    cls: type, optimizer_class: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(cls)
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    train(model, [optimizer], batches(model, 2), {})
    graph = model.graph()
    remove = graph.sample(0.4, torch.Generator().manual_seed(0))
    before, traced = snapshot(model, [optimizer]), copy.deepcopy(graph)
    failures = 0
    for step in range(1000):
        with monkeypatch.context() as patch:
            countdown(patch, step)
            try:
                prune_channels(model, graph, remove, optimizers=[optimizer])
                break
            except Injected:
                failures += 1
        assert snapshot(model, [optimizer]) == before
        assert graph.shapes == traced.shapes
        for name, group in graph.groups.items():
            for mine, old in zip(group.slices, traced.groups[name].slices, strict=True):
                assert torch.equal(mine.index, old.index)
    # Each tensor was made and exchanged, and each module followed, before the last failure.
    tensors = len({s.tensor for group in graph.groups.values() for s in group.slices})
    assert failures > 3 * tensors + len(list(model.children()))
    train(model, [optimizer], batches(model, 1), {})


def countdown(patch: pytest.MonkeyPatch, steps: int) -> None:
    """After so many calls, the next call of anything that makes a tensor or that a commit writes with raises, once."""
    left = [steps]

    def counted(original: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            fires = left[0] == -1
            if fires and not after:
                raise Injected
            result = original(*args, **kwargs)
            if fires:
                raise Injected
            return result

        return call

    for name in ("set_", "index_select"):
        patch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name), after=False))
    for name in ("set_storage", "set_items", "clear", "set_attribute", "follow_shapes"):
        patch.setattr(Transaction, name, counted(getattr(Transaction, name), after=True))


def test_an_attribute_that_refuses_rolls_everything_back() -> None:
    class Stubborn(nn.Conv2d):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "in_channels" and hasattr(self, "in_channels") and value != 6:
                raise AttributeError("in_channels is mine")
            super().__setattr__(name, value)

    model = build(Chain)
    model.b.__class__ = Stubborn
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, [optimizer], batches(model, 1), {})
    before = snapshot(model, [optimizer])
    with pytest.raises(AttributeError, match="in_channels is mine"):
        prune_channels(model, model.graph(), {"a": [0], "b": [1]}, optimizers=[optimizer])
    assert snapshot(model, [optimizer]) == before


@pytest.fixture
def bystander() -> Iterator[None]:
    """A second thread, to which the kernel may hand a signal that the first one masks."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.fixture
def arrivals() -> Iterator[list[int]]:
    """What the handlers saw; they record the signal instead of ending the tests."""
    seen: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    old = {n: signal.signal(n, lambda number, frame: seen.append(number)) for n in numbers}
    yield seen
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_in_the_middle_is_handled_once_and_after(
    number: int, fails: bool, arrivals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(Chain)
    during: list[int] = []
    original = Transaction.set_storage

    def set_storage(self: Transaction, tensor: Tensor, new: Tensor) -> None:
        if not during:
            os.kill(os.getpid(), number)
        during.append(len(arrivals))
        if fails:
            raise Injected
        original(self, tensor, new)

    monkeypatch.setattr(Transaction, "set_storage", set_storage)
    handler = signal.getsignal(number)
    try:
        prune_channels(model, model.graph(), {"a": [0]})
    except Injected:
        assert fails
    assert set(during) == {0}
    assert arrivals == [number]
    assert signal.getsignal(number) is handler
    os.kill(os.getpid(), number)
    assert arrivals == [number, number]


def test_ctrl_c_interrupts_after_a_complete_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = build(Chain), build(Chain)
    prune_channels(twin, twin.graph(), {"a": [0]})
    original = Transaction.follow_shapes
    monkeypatch.setattr(
        Transaction,
        "follow_shapes",
        lambda self, *args: (os.kill(os.getpid(), signal.SIGINT), original(self, *args)),
    )
    # A shell that starts the tests in the background lets them ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            prune_channels(model, model.graph(), {"a": [0]})
    finally:
        signal.signal(signal.SIGINT, before)
    torch.testing.assert_close(named_tensors(model), named_tensors(twin), rtol=0, atol=0)
    assert (model.a.out_channels, model.a_bn.num_features, model.b.in_channels) == (5, 5, 5)


def test_deferring_nests_so_that_nothing_comes_between_two_surgeries(arrivals: list[int]) -> None:
    with signals_deferred():
        with signals_deferred():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
        assert arrivals == []
    assert arrivals == [signal.SIGUSR1]


def test_deferring_does_nothing_in_another_thread(arrivals: list[int]) -> None:
    handlers = []

    def body() -> None:
        with signals_deferred():
            handlers.append(signal.getsignal(signal.SIGUSR1))

    expected = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert handlers == [expected]
    assert arrivals == []
