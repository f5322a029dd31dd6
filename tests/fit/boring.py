"""A small LightningModule around any net of the zoo, and a loader of made data that a net can learn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Boring(L.LightningModule):
    """Classifies by the mean of the first channel."""

    def __init__(self, net: nn.Module, optimizer: str = "AdamW", **kwargs: Any) -> None:
        super().__init__()
        self.net = net
        self.optimizer, self.kwargs = optimizer, {"lr": 1e-3, **kwargs}

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x)
        out = out[0] if isinstance(out, tuple) else out
        return F.cross_entropy(out.flatten(2).mean(2) if out.ndim > 2 else out, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), **self.kwargs)


def loader(n: int = 64, batch: int = 8, size: int = 12, seed: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, size, size, generator=generator)
    y = (x[:, 0].mean((1, 2)) > 0).long()
    return DataLoader(TensorDataset(x, y), batch, shuffle=False)


@cache
def _elsewhere() -> TemporaryDirectory[str]:
    """A folder for reports that nobody looks at, gone when the process ends: the working directory stays clean."""
    return TemporaryDirectory(prefix="fits-")


def trainer(callbacks: Sequence[L.Callback], **kwargs: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "default_root_dir": _elsewhere().name,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


def kept_trainer(folder: Path, callbacks: Sequence[L.Callback], steps: int) -> L.Trainer:
    """One whose callbacks save checkpoints, for so many steps."""
    kwargs = {"max_epochs": None, "max_steps": steps, "default_root_dir": folder, "enable_checkpointing": True}
    return trainer(callbacks, **kwargs)


class Validated(Boring):
    """The same with a validation step."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())
