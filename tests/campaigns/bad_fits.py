"""Fits that cannot work, and odd ones that can: schedules, inputs, strategies, the user's own errors."""

# ruff: noqa: E501  (one case a line reads better)
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import zoo
from fit.boring import Boring, Validated, loader, trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from campaigns.cases import Case
from lightning_taylor import Gradual, Iterative, OneShot, Target, TaylorBatch, TaylorPruning
from lightning_taylor.fit.distributed import check_strategy
from lightning_taylor.plan.guard import Guard

Fit = Callable[[Any], Any]


class Other(EMAWeightAveraging):
    """A second one; Lightning wants another name."""


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.randn(3, 12, 12), torch.tensor(0)


class Whole(Boring):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class RaisesFirst(Boring):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.net(batch[0])
        raise LookupError("of the user's training step")


class RaisesIn(Boring):
    """In one of its own hooks, at the fifth call."""

    hook = "on_after_backward"

    def __init__(self, net: nn.Module, hook: str) -> None:
        super().__init__(net)
        calls = 0

        def raising(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise LookupError(f"of the user's {hook}")

        setattr(self, hook, raising)


class NoBackward(Boring):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])


class WithoutNet(Boring):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net.weight * batch[0].mean()).sum()


class NonFinite(Boring):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * float("nan")


class FrozenButHead(Boring):
    def __init__(self) -> None:
        super().__init__(zoo.Residual())
        self.net.requires_grad_(False)
        self.net.head.requires_grad_(True)


class Lbfgs(Boring):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), max_iter=2)


class DictBatch(Boring):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch["image"]), batch["label"])


def fit(pruner: Callable[[], TaylorPruning], data: Callable[[], Any] = loader, others: Any = (), **kwargs: Any) -> Fit:
    """A whole fit, in a folder of its own."""

    def act(module: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = trainer([pruner(), *(make() for make in others)], default_root_dir=folder, **kwargs)
            run.fit(module, data(), *([loader(seed=1)] if isinstance(module, Validated) else []))

    return act


def pruning(**kwargs: Any) -> Callable[[], TaylorPruning]:
    return lambda: TaylorPruning(**{"target": 0.5, "measure_latency": False, **kwargs})


def residual() -> nn.Module:
    return Boring(zoo.Residual())


def endless() -> Any:
    return DataLoader(Endless(), 8)


def dicts() -> Any:
    return DataLoader([{"image": torch.randn(3, 12, 12), "label": i % 2} for i in range(64)], 8)  # type: ignore[arg-type]


def lists_of_images() -> Any:
    return DataLoader([(torch.randn(3, 12, 12), i % 2) for i in range(5)], 8)  # type: ignore[arg-type]


X = torch.randn(2, 3, 12, 12)
BAD: list[tuple[str, Fit, str, Callable[[], nn.Module]]] = [
    ("OneShot longer than the fit", fit(pruning(schedule=OneShot(100))), "needs 100 optimizer steps.*has 24", residual),
    ("Gradual longer than the fit", fit(pruning(schedule=Gradual(1, 0, 25))), "needs 25 .*has 24", residual),
    ("Iterative longer than the fit", fit(pruning(schedule=Iterative(25, 1))), "needs 25 .*has 24", residual),
    ("longer by accumulation", fit(pruning(schedule=OneShot(20)), accumulate_grad_batches=4), "needs 20 .*has 6", residual),
    ("only event at step 1", fit(pruning(schedule=OneShot(1))), "only event after the first step.*example_inputs", residual),
    ("a fit of one step", fit(pruning(), max_steps=1), "1 optimizer steps is too short", residual),
    ("unknown length", fit(pruning(), endless, max_epochs=-1), "length is unknown.*set max_steps", residual),
    ("unknown epoch length", fit(pruning(), endless, max_epochs=2), "length is unknown.*set max_steps", residual),
    ("a pattern for nothing", fit(pruning(ignore=["layer9"])), "'layer9' matches no layer; the layers are net.stem", residual),
    ("everything ignored", fit(pruning(ignore=["net"])), "can be removed.*ignored by the pattern 'net'", residual),
    ("an unreachable target", fit(pruning(target=1e-6)), "flops=1e-06 cannot be met", residual),
    ("unreachable by min_channels", fit(pruning(min_channels=7)), "cannot be met.*lower min_channels", residual),
    ("unreachable by round_to", fit(pruning(target=0.05, round_to=8)), "cannot be met.*round_to", residual),
    ("unreachable params", fit(pruning(target=Target(flops=0.9, params=1e-6))), "params=1e-06 cannot be met", residual),
    ("example_inputs of a wrong shape", fit(pruning(example_inputs=torch.randn(2, 1, 9, 9))), "Whole raised RuntimeError", lambda: Whole(zoo.Residual())),
    ("too many example_inputs", fit(pruning(example_inputs=(X, X))), "Whole raised TypeError", lambda: Whole(zoo.Residual())),
    ("example_inputs by a wrong name", fit(pruning(example_inputs={"img": X})), "Whole raised TypeError.*img", lambda: Whole(zoo.Residual())),
    ("example_inputs without forward", fit(pruning(example_inputs=X)), "Boring raised NotImplementedError", residual),
    ("example_inputs on meta", fit(pruning(example_inputs=X.to("meta"))), "meta", lambda: Whole(zoo.Residual())),
    ("a single linear", fit(pruning()), "can be removed.*normalised or ordered along the channels by _log_softmax", lambda: Boring(nn.Sequential(nn.Flatten(), nn.Linear(432, 2)))),
    ("only LayerNorm", fit(pruning()), "can be removed", lambda: Boring(nn.Sequential(nn.LayerNorm(12)))),
    ("raises in the first training step", fit(pruning()), "of the user's training step", lambda: RaisesFirst(zoo.Residual())),
    ("calls no module", fit(pruning()), "called no module.*example_inputs", lambda: WithoutNet(nn.Linear(3, 3))),
    ("guards an unknown metric", fit(pruning(guard=Guard("acc", 0.1)), num_sanity_val_steps=0), "monitor='acc'.*no such metric.*val_acc", lambda: Validated(zoo.Residual())),
    ("guards without a validation", fit(pruning(guard=Guard("val_acc", 0.1))), "val_acc.*needs a validation", residual),
    ("frozen but for the head", fit(pruning()), "cannot be met.*no gradient has reached", FrozenButHead),
    ("a scripted net", fit(pruning()), "'net' is scripted", lambda: Boring(torch.jit.trace(zoo.vgg(), X))),
    ("two pruners", fit(pruning(), others=(pruning(schedule=OneShot(3)),)), "more than one stateful callback of type `TaylorPruning`", residual),
    *((f"raises in {hook}", fit(pruning()), f"of the user's {hook}", lambda h=hook: RaisesIn(zoo.Residual(), h))
      for hook in ("on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_train_batch_start")),
]  # fmt: skip
FINE: list[tuple[str, Fit, Callable[[], nn.Module]]] = [
    ("endless with max_steps", fit(pruning(), endless, max_epochs=-1, max_steps=20), residual),
    ("endless with a schedule", fit(pruning(schedule=OneShot(5)), endless, max_epochs=1, limit_train_batches=12), residual),
    ("a target of 1", fit(pruning(target=1.0)), residual),
    ("a target of int 1", fit(pruning(target=1)), residual),
    ("params and channels", fit(pruning(target=Target(params=0.5, channels=0.7))), residual),
    ("an only event, with example_inputs", fit(pruning(schedule=OneShot(1), example_inputs=X)), lambda: Whole(zoo.Residual())),
    ("no backward pass at all", fit(pruning()), lambda: NoBackward(zoo.Residual())),
    ("losses that are nan", fit(pruning()), lambda: NonFinite(zoo.Residual())),
    ("LBFGS", fit(pruning()), lambda: Lbfgs(zoo.Residual())),
    ("batches that are dicts", fit(pruning(), dicts), lambda: DictBatch(zoo.Residual())),
    ("one batch a fit of five", fit(pruning(), lists_of_images, max_epochs=5), residual),
    ("two averages", fit(pruning(), others=(lambda: EMAWeightAveraging(decay=0.9), lambda: Other(decay=0.5))), residual),
    ("bf16-true", fit(pruning(), precision="bf16-true"), residual),
    ("bf16-mixed", fit(pruning(criterion=TaylorBatch()), precision="bf16-mixed"), residual),
    ("64-true", fit(pruning(), precision="64-true"), residual),
    ("detect_anomaly", fit(pruning(), detect_anomaly=True), residual),
    ("overfit_batches", fit(pruning(), overfit_batches=2, max_epochs=8), residual),
    ("no inference mode", fit(pruning(), inference_mode=False), lambda: Validated(zoo.Residual())),
    ("spectral_norm", fit(pruning(target=0.8)), lambda: Boring(_spectral())),
    ("empty barebones", fit(pruning(), barebones=True, enable_checkpointing=None, logger=None, enable_progress_bar=None, enable_model_summary=None), residual),
]  # fmt: skip


def _spectral() -> nn.Module:
    net = zoo.Residual()
    nn.utils.parametrizations.spectral_norm(net.one[0])
    return net


def _cases() -> Iterator[Case]:
    for name, act, says, model in BAD:
        trains = name.startswith(("raises in on", "guards an unknown"))
        yield Case(f"fit: {name}", act, says, model, also=(LookupError, RuntimeError), changes=trains, buffers=True)
    for name, act, model in FINE:
        yield Case(f"fit: {name}", act, None, model, changes=True)
    for kind in (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy):
        says = f"does not work with {kind.__name__}.*strategy='ddp'"
        yield Case(f"strategy {kind.__name__}", lambda _, k=kind: check_strategy(k.__new__(k), False), says)
    yield Case("allowed all the same", lambda _: check_strategy(FSDPStrategy(), True), None)


CASES: list[Case] = list(_cases())
