"""A fit that can be killed after any step and resumed, and what it leaves behind, for comparison bit by bit."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import zoo
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn

from fit.boring import Boring, trainer
from fit.rank_launch import WHERE, all_well, on_ranks
from lightning_taylor import Gradual, Target, TaylorBatch, TaylorPruning
from lightning_taylor.plan import ScoreBatches

BATCHES, EPOCHS = 8, 3
SCHEDULE = Gradual(every_n_steps=3, start_step=2, end_step=14)


class StatefulLoader:
    """Made batches in a fixed order; goes on in the middle of an epoch where its state says."""

    def __init__(self, batches: int = BATCHES, size: int = 6, rank: int = 0) -> None:
        generator = torch.Generator().manual_seed(rank)
        self.data = []
        for _ in range(batches):
            x = torch.randn(size, 3, 12, 12, generator=generator)
            self.data.append((x, (x[:, 0].mean((1, 2)) > 0).long()))
        self.position = 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        # Whoever knows the length never asks for the end, so a finished epoch is noticed at the next one's start.
        for i in range(self.position % len(self.data), len(self.data)):
            self.position = i + 1
            yield self.data[i]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Module(Boring):
    """Has dropout, whose random numbers travel with the checkpoint, a schedule of the learning rate, and its data."""

    def __init__(self, net: nn.Module | None = None, optimizer: str = "AdamW") -> None:
        super().__init__(net or zoo.Residual(), optimizer)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(F.dropout(x, 0.1)), y)

    def train_dataloader(self) -> StatefulLoader:
        return StatefulLoader(rank=self.trainer.global_rank)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rng = checkpoint["rng"]

    def on_train_start(self) -> None:
        if hasattr(self, "rng"):
            torch.set_rng_state(self.rng)


class WithForward(Module):
    """Has a ``forward``, which takes example inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ShortBatch(Module):
    """The fifth batch has one example; the last of an epoch often has fewer than the others."""

    def train_dataloader(self) -> StatefulLoader:
        batches = super().train_dataloader()
        x, y = batches.data[4]
        batches.data[4] = (x[:1], y[:1])
        return batches


class TwoOptimizers(Module):
    """Manual optimization: one optimizer for the body, one for the head, the body's every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        body, head = self.optimizers()  # type: ignore[misc]
        body.zero_grad()
        head.zero_grad()
        self.manual_backward(loss)
        head.step()
        if batch_idx % 2:
            body.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        head = list(self.net.head.parameters())
        body = [p for name, p in self.net.named_parameters() if not name.startswith("head")]
        return [torch.optim.AdamW(body, 1e-3), torch.optim.SGD(head, 1e-2, momentum=0.9)]


class OwnRhythm(Module):
    """Manual optimization that leaves every third step out."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 3 != 1:
            optimizer.step()


class KilledError(RuntimeError):
    pass


class KillAfter(Checkpoint):
    """Saves after some number of optimizer steps, as the last callback, and ends the fit there.

    Between two steps accumulated gradients would be lost: Lightning does not save them.
    """

    def __init__(self, steps: int, path: Path) -> None:
        self.steps, self.path, self.seen, self.before = steps, path, 0, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.seen += trainer.global_step > self.before
        self.before = trainer.global_step
        if self.seen == self.steps:
            trainer.save_checkpoint(self.path)
            raise KilledError


class Keep(Checkpoint):
    """Writes everything that a fit has learnt into a file per rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        kept: dict[str, Any] = {"model": dict(pl_module.state_dict())}
        kept["optimizers"] = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            if average is not None:
                kept["average"] = dict(average.state_dict())
        kept["random"] = torch.get_rng_state()
        torch.save(kept, self.folder / f"kept_{trainer.global_rank}.pt")


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"callbacks": lambda: [EMAWeightAveraging(decay=0.9)]},
    "ema first": {"callbacks": lambda: [EMAWeightAveraging(decay=0.9)], "first": True},
    "swa": {"callbacks": lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1)]},
    "accumulated": {"trainer": {"accumulate_grad_batches": 3, "max_epochs": 5}},
    "two optimizers": {"module": TwoOptimizers},
    "own rhythm": {"module": OwnRhythm, "pruning": {"schedule": None}},
    "last steps scored": {"pruning": {"score_batches": 2}},
    "spread steps scored": {"pruning": {"score_batches": ScoreBatches(2), "criterion": TaylorBatch()}},
    "memory of example inputs": {
        "pruning": {"target": Target(memory=0.5), "example_inputs": [1, 3, 12, 12]},
        "module": WithForward,
    },
    "memory of the first batch": {"pruning": {"target": Target(memory=0.5)}, "module": ShortBatch},
}


def run(
    folder: Path,
    kind: str,
    *,
    kill: int | None = None,
    resume: Path | None = None,
    extra: Sequence[L.Callback] = (),
    target: float | Target = 0.5,
    changed: Mapping[str, Any] = MappingProxyType({}),
    **kwargs: Any,
) -> L.Trainer:
    """One fit; leaves ``kept_<rank>.pt``, or the checkpoint ``kill.ckpt`` if it is killed.

    ``changed`` holds arguments of the callback in the place of the kind's.
    """
    torch.manual_seed(0)
    settings = KINDS[kind]
    pruner = TaylorPruning(
        **{"target": target, "schedule": SCHEDULE, "measure_latency": False, **settings.get("pruning", {}), **changed}
    )
    if "accumulate_grad_batches" in settings.get("trainer", {}):
        pruner = TaylorPruning(target, Gradual(2, 1, 6), measure_latency=False)
    others = settings["callbacks"]() if "callbacks" in settings else []
    callbacks = [*others, pruner] if settings.get("first") else [pruner, *others]
    callbacks += [*extra, Keep(folder)]
    if kill is not None:
        callbacks.append(KillAfter(kill, folder / "kill.ckpt"))
    options = {"max_epochs": EPOCHS, "enable_checkpointing": True, "default_root_dir": folder}
    fitter = trainer(callbacks, **{**options, **settings.get("trainer", {}), **kwargs})
    fitter.fit(settings.get("module", Module)(), ckpt_path=resume, weights_only=True)
    return fitter


def steps_of(kind: str) -> int:
    """How many steps a fit of this kind has; every batch of two optimizers is one."""
    settings = KINDS[kind].get("trainer", {})
    per_epoch = -(-BATCHES // settings.get("accumulate_grad_batches", 1))
    return per_epoch * settings.get("max_epochs", EPOCHS)


def run_ranks(ranks: int, folder: Path, kind: str, **kwargs: Any) -> None:
    """The same in a new process per rank; one that was to be killed comes back too."""
    run_each_on_ranks(ranks, [(folder, kind, kwargs)])


def run_each_on_ranks(ranks: int, fits: Sequence[tuple[Path, str, dict[str, Any]]]) -> None:
    """The same for several folders and kinds, one after the other in the same processes."""
    for folder, _, _ in fits:
        folder.mkdir(exist_ok=True, parents=True)
    several = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {"devices": 1}
    all_well(on_ranks(ranks, _run_each, [(folder, kind, {**several, **kwargs}) for folder, kind, kwargs in fits]))


def _run_each(rank: int, fits: Sequence[tuple[Path, str, dict[str, Any]]]) -> None:
    where = {name: os.environ[name] for name in WHERE}
    for folder, kind, kwargs in fits:
        os.environ.update(where)  # Lightning forgets it at the end of a fit.
        try:
            run(folder, kind, **kwargs)
        except KilledError:
            if kwargs.get("kill") is None:
                raise
        except Exception as error:
            raise RuntimeError(f"the fit in {folder}") from error


def parted(ranks: int, kind: str, whole: Path, parts: Path) -> list[str]:
    """What differs between a fit and a resumed one, on any rank.

    Left out on other ranks than the first, since the checkpoint has those of the first: running statistics where
    every rank has its own. DDP makes them alike at each forward pass, but not in manual optimization; and averages
    of them differ, which at the end go into the model. Without pruning it is the same.
    """
    found = []
    for rank in range(ranks):
        one, other = (kept(folder, rank) for folder in (whole, parts))
        if rank and (kind == "two optimizers" or "average" in one):
            for results, part in itertools.product((one, other), ("model", "average")):
                results[part] = {n: t for n, t in results.get(part, {}).items() if "running_" not in n}
        found += [f"rank {rank}{where}" for where in differences(one, other)]
    return found


def kept(folder: Path, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"kept_{rank}.pt", weights_only=True)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Every place where two nested results are not the same, bit by bit."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.shape == other.shape and one.dtype == other.dtype
        return [] if same and torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: length"]
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}.{i}")]
    return [] if one == other else [where]
