"""One fit on several ranks with different data on each, and how far the ranks came apart in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import zoo
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from fit.boring import Boring, trainer
from fit.rank_launch import WHERE, all_well, on_ranks
from fit.resuming import StatefulLoader
from lightning_taylor import Gradual, TaylorPruning
from lightning_taylor.utilities.plain import to_plain

Result = list[dict[str, Any]]


class Ranked(Boring):
    """Reads other data on every rank."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x)
        return F.cross_entropy(out[0] if isinstance(out, tuple) else out, y)

    def train_dataloader(self) -> StatefulLoader:
        return StatefulLoader(rank=self.trainer.global_rank)


class RankedByHand(Ranked):
    """The same in manual optimization."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss.detach()


class Watch(L.Callback):
    """Notes all that has to be equal on every rank: what the pruning knows after each step, what events left."""

    def __init__(self, pruner: TaylorPruning) -> None:
        self.pruner, self.steps, self.events = pruner, [], []  # type: ignore[var-annotated]
        self.gradients: dict[str, Tensor] = {}
        self.seen = self.step = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        graph, before, self.step = self.pruner.graph, self.step, trainer.global_step
        if graph is None or trainer.global_step == before:  # between two steps each rank has scores of its own
            return
        state = self.pruner.state_dict()
        events = (state["record"] or {"events": []})["events"]
        stepped = {"gradients": self.gradients, "scores": state["scores"], "graph": to_plain(graph)}
        self.steps.append({**stepped, "parameters": values(pl_module.named_parameters())})
        # Where nothing went, DDP lets the running statistics differ until the next forward pass, as it always does.
        if len(events) > self.seen and events[-1]["removed"]:
            states = [o.state_dict()["state"] for o in trainer.optimizers]
            record = [{k: v for k, v in event.items() if k != "seconds"} for event in events]
            self.events.append({"optimizers": states, "record": record, "buffers": values(pl_module.named_buffers())})
        self.seen = len(events)


def values(named: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named}


@dataclass
class Case:
    """What a fit on ranks is made of."""

    net: Callable[[], nn.Module] = zoo.Residual
    module: type[Ranked] = Ranked
    ddp: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    optimizer: tuple[str, dict[str, Any]] = ("AdamW", {})
    seed: int = 0


def fit(rank: int, case: Case, folder: str, meddle: Callable[[int], None] | None = None) -> dict[str, Any]:
    """The fit on one rank; ``meddle`` may patch what it likes there beforehand."""
    torch.manual_seed(case.seed + rank)  # DDP makes the weights alike, nothing else
    if meddle:
        meddle(rank)
    schedule = Gradual(2, 1, 10)
    pruner = TaylorPruning(**{"target": 0.5, "schedule": schedule, "measure_latency": False, **case.pruning})
    watch = Watch(pruner)
    options = {"max_epochs": 2, "default_root_dir": Path(folder), **case.trainer}
    strategy = DDPStrategy(process_group_backend="gloo", **case.ddp)
    run = trainer([pruner, watch], strategy=strategy, devices=int(os.environ["WORLD_SIZE"]), **options)
    name, arguments = case.optimizer
    run.fit(case.module(case.net(), name, **arguments))
    return {"steps": watch.steps, "events": watch.events, "reached": pruner.reached}


def fits(ranks: int, case: Case, folder: Path, meddle: Callable[[int], None] | None = None, **kwargs: Any) -> Result:
    return all_well(on_ranks(ranks, fit, case, str(folder), meddle, **kwargs))


def fits_one_after_another(ranks: int, cases: dict[str, Case], folder: Path) -> dict[str, Result]:
    """The fits of all cases in the same processes, by name; what a case raises names it."""
    on_each = all_well(on_ranks(ranks, _fit_each, cases, str(folder)))
    return {name: [results[name] for results in on_each] for name in cases}


def _fit_each(rank: int, cases: dict[str, Case], folder: str) -> dict[str, dict[str, Any]]:
    found, where = {}, {name: os.environ[name] for name in WHERE}
    for name, case in cases.items():
        os.environ.update(where)  # Lightning forgets it at the end of a fit.
        try:
            found[name] = fit(rank, case, folder)
        except Exception as error:
            raise RuntimeError(f"the fit with {name}") from error
    return found


def spread(results: Result) -> dict[str, float]:
    """The largest difference between rank 0 and any other, of each thing that was noted; infinite between shapes."""
    found: dict[str, float] = {}
    for other in results[1:]:
        for part in ("steps", "events"):
            if len(results[0][part]) != len(other[part]):
                found[part] = float("inf")
            for here, there in zip(results[0][part], other[part], strict=False):
                for name in here:
                    found[name] = max(found.get(name, 0.0), difference(here[name], there[name]))
    return found


def difference(one: Any, other: Any) -> float:
    """The largest difference between two nested results; infinite where they cannot be compared."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.shape != other.shape:
            return float("inf")
        # nan beside nan is no difference: a channel without evidence
        same = (one == other) | (torch.isnan(one) & torch.isnan(other))
        gap = torch.where(same, 0, one.double() - other.double()).abs()
        return float("inf") if torch.isnan(gap).any() else float(gap.amax()) if gap.numel() else 0.0
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return float("inf")
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return float("inf")
        return max((difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else float("inf")
