"""A LightningModule that can be built again from its checkpoint, in several makes, and a fit of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from fit.boring import loader, trainer
from lightning_taylor import Gradual, TaylorPruning
from lightning_taylor.checkpoint.load import PrunedCheckpointMixin


def layers(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        zoo.conv(3, width), nn.BatchNorm2d(width), nn.ReLU(), zoo.conv(width, width + 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width + 2, classes),
    )  # fmt: skip


class Net(L.LightningModule):
    """Its ``score`` says which epoch is best: it rises with the steps, or falls."""

    def __init__(self, width: int = 8, classes: int = 5, rising: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rising = rising
        self.build()

    def build(self) -> None:
        self.net = layers(self.hparams["width"], self.hparams["classes"])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        self.log("score", float(self.global_step) * (1 if self.rising else -1), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test", self(batch[0]).sum())

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Mixed(PrunedCheckpointMixin, Net):
    """Takes pruned weights by itself."""


class Late(Net):
    """Builds its layers when the Trainer asks for them."""

    def build(self) -> None:
        pass

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            super().build()


class LateMixed(PrunedCheckpointMixin, Late):
    """Both."""


def pruning(**kwargs: Any) -> TaylorPruning:
    return TaylorPruning(**{"target": 0.5, "schedule": Gradual(2, 9, 15), "measure_latency": False, **kwargs})


def fitted(module: L.LightningModule, folder: Path, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    """Three epochs of eight steps: dense, pruned, as small as asked for."""
    options = {"default_root_dir": folder, "enable_checkpointing": True, "num_sanity_val_steps": 0, **kwargs}
    pruners = [c for c in callbacks if isinstance(c, TaylorPruning)] or [pruning()]
    run = trainer([*pruners, *(c for c in callbacks if c not in pruners)], **options)
    run.fit(module, loader(), loader(seed=1))
    return run


def weights_of(path: str | Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def holds(module: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Whether a module has exactly these weights, and its layers know their sizes."""
    state = module.state_dict()
    same = state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)
    net = module.net
    return same and net[0].out_channels == net[1].num_features == net[3].in_channels == weights["net.0.weight"].shape[0]  # type: ignore[index,union-attr,return-value]
