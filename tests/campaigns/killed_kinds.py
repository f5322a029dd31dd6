"""The kinds of fits that the kill campaign kills: guards, averages, teachers, wrapped and several optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import zoo
from fit.resuming import Module, StatefulLoader, TwoOptimizers
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from campaigns.learners import Learner, Recipe
from campaigns.random_modules import Loader
from lightning_taylor import Gradual, Iterative, OneShot, Random, TaylorBatch, TaylorPruning
from lightning_taylor.plan.guard import Guard


class Checked(Module):
    """With a validation, for the guard."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def val_dataloader(self) -> Any:
        return StatefulLoader(batches=2)


class Taught(Module):
    """Learns from a slow copy of its network, too, which follows at the beginning of each step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.slow = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
            target = self.slow(batch[0])
        return super().training_step(batch, batch_idx) + F.mse_loss(self.net(batch[0]), target)


class Averaged(Module):
    """Keeps an average of its network as a part, of which it takes account after each step of the optimizer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9)).requires_grad_(False)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.net)


class Wrapper(Optimizer):
    """Around another optimizer; what it keeps of a parameter travels in the checkpoint beside what that one keeps."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        plain = self.inner.state_dict()
        kept = {i: {"outer": self.state[p]} for i, p in enumerate(self.parameters()) if self.state[p]}
        return {**plain, "state": {i: {**plain["state"].get(i, {}), **kept.get(i, {})} for i in plain["state"]}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        inner = {i: {k: v for k, v in values.items() if k != "outer"} for i, values in state_dict["state"].items()}
        self.inner.load_state_dict({**state_dict, "state": inner})
        self.param_groups = self.inner.param_groups
        for i, p in enumerate(self.parameters()):
            self.state[p] = dict(state_dict["state"].get(i, {}).get("outer", {}))


class Lookahead(Wrapper):
    """Every third step the parameters go back halfway to their slow copies."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.inner.step(closure)
        for p in self.parameters():
            kept = self.state[p]
            kept.setdefault("slow", p.detach().clone())
            kept["steps"] = kept.get("steps", 0) + 1
            if kept["steps"] % 3 == 0:
                kept["slow"].lerp_(p, 0.5)
                p.copy_(kept["slow"])
        return loss


class SharpnessAware(Wrapper):
    """Steps by the gradient at a place uphill."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is not None
        loss = closure()
        uphill = [None if p.grad is None else 0.01 * p.grad for p in self.parameters()]
        self._move(uphill, 1)
        closure()
        self._move(uphill, -1)
        self.inner.step()
        return loss

    def _move(self, by: list[Tensor | None], sign: int) -> None:
        for p, change in zip(self.parameters(), by, strict=True):
            if change is not None:
                p.add_(change, alpha=sign)


def wrapping(kind: Callable[[Optimizer], Optimizer]) -> type[Module]:
    """Return the module with another optimizer around its own."""

    class Wrapped(Module):
        def configure_optimizers(self) -> Any:
            (inner,), _ = super().configure_optimizers()
            return [kind(inner)], []

    return Wrapped


class Learned(Learner):
    """A learner of the campaign of random modules, with its data."""

    @property
    def net(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.neck, self.head)

    def train_dataloader(self) -> Loader:
        return Loader(self.recipe)


def learned(**recipe: Any) -> Callable[[], Learned]:
    common = {"width": 6, "norm": True, "dropout": 0.2, "double": False}
    return lambda: Learned(Recipe(**{**common, **recipe}))


def pruning(target: float = 0.5, schedule: Any = None, *args: Any, **kwargs: Any) -> Callable[[], TaylorPruning]:
    schedule = schedule or Gradual(3, 2, 14)
    return lambda: TaylorPruning(target, schedule, *args, measure_latency=False, **kwargs)


def averaging() -> list[Any]:
    return [EMAWeightAveraging(decay=0.9)]


def stochastic() -> list[Any]:
    return [StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1)]


CONFIGS: dict[str, dict[str, Any]] = {
    "gradual": {"pruner": pruning()},
    "exception checkpoint": {"pruner": pruning(), "exception": True, "net": zoo.vgg},
    "ema": {"pruner": pruning(), "others": averaging},
    "iterative": {"pruner": pruning(0.6, Iterative(1, 2)), "net": zoo.Concat},
    "two optimizers": {"pruner": pruning(), "build": TwoOptimizers},
    "swa": {"pruner": pruning(), "others": stochastic},
    "accumulated": {
        "pruner": pruning(0.5, Gradual(2, 1, 6)), "trainer": {"accumulate_grad_batches": 3}, "exception": True,
    },
    "default schedule": {"pruner": lambda: TaylorPruning(0.5), "net": zoo.Inverted, "exception": True},
    "rollback": {
        "pruner": lambda: pruning(0.5, Gradual(3, 8, 16), guard=Guard("val_acc", 1.0, "rollback"))(),
        "module": Checked,
    },
    "one shot": {"pruner": pruning(0.4, OneShot(9), TaylorBatch()), "net": zoo.OptionA, "optimizer": "SGD"},
    "random": {
        "pruner": pruning(0.5, Iterative(2, 3), Random(3)), "net": zoo.Halves, "others": averaging, "exception": True,
    },
    "momentum teacher": {"pruner": pruning(), "module": Taught},
    "averaged part": {"pruner": pruning(), "module": Averaged, "exception": True},
    "lookahead": {"pruner": pruning(), "module": wrapping(Lookahead)},
    "sharpness aware": {"pruner": pruning(), "module": wrapping(SharpnessAware), "others": averaging},
    "teacher by hand": {
        "pruner": pruning(0.8),
        "build": learned(teacher="momentum in step", optimization="two by hand", optimizer="AdamW", views="two calls"),
    },
    "two objectives": {
        "pruner": pruning(0.8),
        "build": learned(blocks=("concat",), teacher="frozen", optimization="two objectives", optimizer="momentum"),
        "others": averaging,
    },
}  # fmt: skip
