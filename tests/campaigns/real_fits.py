"""One fit of a network, from the beginning or from a checkpoint, and all that it has learnt in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from fit.boring import kept_trainer
from fit.resuming import StatefulLoader
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from campaigns.real_nets import CLASSES, Case
from lightning_taylor import Gradual, TaylorPruning

STEPS, KEPT = 12, 5
SCHEDULE = Gradual(every_n_steps=2, start_step=0, end_step=8)
EVENTS = 4


class Data(StatefulLoader):
    """Random inputs and classes, always the same; goes on in the middle of an epoch."""

    def __init__(self, case: Case) -> None:
        super().__init__(batches=0)
        generator = torch.Generator().manual_seed(1)
        shape = (case.batch, *case.shape)
        self.data = [
            (torch.rand(shape, generator=generator), torch.randint(CLASSES, shape[:1], generator=generator))
            for _ in range(STEPS)
        ]


class Module(L.LightningModule):
    """An ordinary module; what is random in a network travels with the checkpoint, as its user may have it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.case, self.net = case, case.build()
        self.random: Tensor | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.case.loss(self.net, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-4)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.random = checkpoint["random"]

    def on_train_start(self) -> None:
        if self.random is not None:
            torch.set_rng_state(self.random)


def fit(case: Case, folder: Path, ckpt: Path | None = None) -> tuple[L.Trainer, Module, TaylorPruning]:
    """One fit, from the beginning or from a checkpoint."""
    # Whole heads are few and dear: they are compared with the other units as they are worth, not within their group.
    options = {"normalization": "none", "measure_latency": False, **case.options}
    pruning = TaylorPruning(case.target, SCHEDULE, case.criterion(), **options)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=KEPT, save_top_k=-1)
    trainer = kept_trainer(folder, [pruning, keep], STEPS)
    module = Module(case)
    trainer.fit(module, Data(case), ckpt_path=ckpt, weights_only=True)
    return trainer, module, pruning


def learnt(trainer: L.Trainer, module: Module, pruning: TaylorPruning) -> dict[str, Any]:
    """All that two fits must have alike: but not how long an event took."""
    events = pruning.state_dict()["record"]["events"]
    return {
        "model": dict(module.state_dict()),
        "optimizers": [optimizer.state_dict()["state"] for optimizer in trainer.optimizers],
        "random": torch.get_rng_state(),
        "events": [{name: value for name, value in event.items() if name != "seconds"} for event in events],
        "remaining": pruning.remaining,
    }
