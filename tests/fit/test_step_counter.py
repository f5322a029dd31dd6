"""Which batches ended with an optimizer step, whoever made it."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import zoo
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fit.boring import Boring, loader, trainer
from lightning_taylor.fit.step_counter import StepCounter

# Lightning says so where a module has none that it knows.
pytestmark = pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.")


class Counting(L.Callback):
    """Uses the counter as the pruning callback does."""

    def __init__(self) -> None:
        self.counter = StepCounter(lambda optimizer: self.before.append(optimizer))
        self.before: list[Optimizer] = []
        self.steps: list[bool] = []
        self.optimizers: list[Optimizer] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.counter.start(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.steps.append(self.counter.stepped())
        self.optimizers = self.counter.optimizers

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.counter.close()


class Manual(Boring):
    """Steps with whatever ``pick`` gives, at every second batch if it accumulates."""

    def __init__(self, *, wrapped: bool = False, every: int = 1, count: int = 1) -> None:
        super().__init__(zoo.OptionA())
        self.automatic_optimization = False
        self.wrapped, self.every, self.count = wrapped, every, count

    def pick(self) -> list[Any]:
        picked = self.optimizers(use_pl_optimizer=self.wrapped)
        return picked if isinstance(picked, list) else [picked]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(super().training_step(batch, batch_idx))
        if (batch_idx + 1) % self.every == 0:
            for optimizer in self.pick():
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        return [SGD(parameters[n :: self.count], 0.0) for n in range(self.count)]


class OfItsOwn(Manual):
    """No optimizer that Lightning knows, and one that steps something else."""

    def configure_optimizers(self) -> None:  # type: ignore[override]
        self.hidden, self.other = SGD(self.parameters(), 0.0), SGD([torch.ones(1, requires_grad=True)], 0.0)

    def pick(self) -> list[Any]:
        self.other.step()
        return [self.hidden]


class Outer(SGD):
    """A wrapper whose inner optimizer steps as well."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, 0.0)
        self.within = inner

    def step(self, closure: Any = None) -> Any:
        return self.within.step(closure)


class Around(Manual):
    def configure_optimizers(self) -> Any:
        return Outer(SGD(self.parameters(), 0.0))


class OtherOnly(OfItsOwn):
    def pick(self) -> list[Any]:
        return [self.other]


def counted(module: L.LightningModule, batches: int = 4, **kwargs: Any) -> Counting:
    hooks = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    counting = Counting()
    trainer([counting], **{"max_epochs": 1, "limit_train_batches": batches, **kwargs}).fit(module, loader())
    assert (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)) == hooks
    return counting


@pytest.mark.parametrize("count", [1, 2])
def test_torchs_own_optimizers_are_counted_and_announced(count: int) -> None:
    module = Manual(count=count)
    counting = counted(module)
    assert counting.steps == [True] * 4
    assert counting.before == [*counting.optimizers] * 4
    assert len(counting.optimizers) == count
    assert module.trainer.global_step == 0


def test_batches_without_a_step_are_told_from_those_with_one() -> None:
    for wrapped in (False, True):
        assert counted(Manual(every=2, wrapped=wrapped)).steps == [False, True, False, True]


@pytest.mark.parametrize("count", [1, 2])
def test_lightnings_optimizers_announce_themselves(count: int) -> None:
    counting = counted(Manual(wrapped=True, count=count))
    assert counting.steps == [True] * 4
    assert counting.before == []


def test_optimizers_that_lightning_does_not_know_are_counted_and_named() -> None:
    module = OfItsOwn()
    counting = counted(module)
    assert counting.steps == [True] * 4
    assert counting.optimizers == [module.hidden]
    assert counting.before == [module.hidden] * 4


def test_optimizers_of_other_parameters_do_not_count() -> None:
    counting = counted(OtherOnly())
    assert counting.steps == [False] * 4
    assert counting.optimizers == counting.before == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_wrapper_and_the_optimizer_inside_are_one_step(wrapped: bool) -> None:
    counting = counted(Around(wrapped=wrapped))
    assert counting.steps == [True] * 4
    assert [type(o) for o in counting.before] == ([] if wrapped else [Outer] * 4)
    assert [type(o) for o in counting.optimizers] == [Outer]


def test_automatic_optimization_counts_as_lightning_does() -> None:
    assert counted(Boring(zoo.OptionA())).steps == [True] * 4
    assert counted(Boring(zoo.OptionA()), accumulate_grad_batches=2).steps == [False, True, False, True]
    assert counted(Boring(zoo.OptionA()), batches=3, accumulate_grad_batches=2).steps == [False, True, True]


class Overflow(Boring):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)


class ManualOverflow(Manual):
    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().manual_backward(loss * (float("inf") if len(self.trainer.callbacks[0].steps) == 1 else 1.0))  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [lambda: Overflow(zoo.OptionA()), lambda: ManualOverflow(wrapped=True)])
def test_a_step_that_the_scaler_skips_counts_as_in_global_step(module: Any) -> None:
    scaling = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    counting = counted(module(), plugins=[scaling])
    assert counting.steps == [True] * 4
    assert counting.before == []


def test_a_step_that_raises_leaves_no_mark() -> None:
    class Failing(SGD):
        fails = True

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise ValueError("once")
            return super().step(closure)

    class Trying(Manual):
        def configure_optimizers(self) -> Any:
            return Failing(self.parameters(), 0.0)

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            Failing.fails = batch_idx % 2 == 0
            try:
                super().training_step(batch, batch_idx)
            except ValueError:
                return

    counting = counted(Trying())
    assert counting.steps == [False, True, False, True]
    assert len(counting.before) == 4


def test_a_counter_that_was_not_started_counts_nothing() -> None:
    counter = StepCounter()
    assert not counter.stepped()
    assert counter.optimizers == []
    counter.close()
