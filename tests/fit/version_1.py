"""A checkpoint that the first release with pruning states wrote, and the fit that it is from.

``version_1.ckpt.gz`` is what ``write`` makes, written by the last commit whose states were of version 1 (a37452e).
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import zoo_sizes
from torch import Tensor

from fit.boring import Boring, loader, trainer
from lightning_taylor import Gradual, Guard, Taylor, TaylorPruning

FILE = Path(__file__).with_name("version_1.ckpt.gz")
STEP = 21


class Views(Boring):
    """A number follows the widths, and two views of an image are joined in a batch."""

    def __init__(self) -> None:
        super().__init__(zoo_sizes.Sliced(), optimizer="SGD", momentum=0.9)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        first, second = self.net(torch.cat([x, x.flip(3)])).chunk(2)
        return F.cross_entropy(first, y) + F.cross_entropy(second, y)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.log("val_acc", 0.9 if self.current_epoch < 3 else 0.1)


class _Save(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == STEP:
            with TemporaryDirectory() as folder:
                trainer.save_checkpoint(path := Path(folder) / "whole.ckpt")
                content = torch.load(path, weights_only=True)
            packed = io.BytesIO()  # not the zip of today, which spends half a kilobyte on a tensor
            torch.save(content, packed, _use_new_zipfile_serialization=False)
            FILE.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


def pruner() -> TaylorPruning:
    schedule = Gradual(every_n_steps=4, start_step=8, end_step=28, curve="linear")
    return TaylorPruning(0.5, schedule, Taylor(), guard=Guard("val_acc", 0.1, "rollback"), measure_latency=False)


def fit(callbacks: Sequence[L.Callback], resume: Path | None = None) -> L.LightningModule:
    module = Views()
    trainer(callbacks, max_epochs=6).fit(
        module, loader(), loader(n=8), ckpt_path=resume, weights_only=True if resume else None
    )
    return module


def write() -> None:
    torch.manual_seed(0)
    fit([pruner(), _Save()])


def unpacked(folder: Path) -> Path:
    """Unpack the checkpoint into a folder."""
    path = folder / "version_1.ckpt"
    path.write_bytes(gzip.decompress(FILE.read_bytes()))
    return path
