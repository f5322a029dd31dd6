"""A project that has its own LightningCLI: its script, its YAML, and a callback more."""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs the extra cli")

SCRIPT = """
import {lightning} as L
import torch
from {lightning}.{cli} import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class MyModule(L.LightningModule):
    def __init__(self, width: int = 16, lr: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


class MyData(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=8)

    val_dataloader = train_dataloader


if __name__ == "__main__":
    cli = LightningCLI(MyModule, MyData)
"""
CONFIG = """
trainer:
  max_epochs: 3
  accelerator: cpu
  devices: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  logger:
    class_path: {lightning}.loggers.CSVLogger
    init_args: {{save_dir: logs}}
  callbacks:
    - class_path: {package}.PrunedModelCheckpoint
      init_args: {{monitor: val_loss, save_last: true}}
    - class_path: {package}.TaylorPruning
      init_args:
        target: {{flops: 0.5, params: 0.6}}
        schedule:
          class_path: lightning_taylor.Gradual
          init_args: {{every_n_steps: 2, start_step: 4, end_step: 16}}
        guard: {{monitor: val_loss, max_drop: 100.0, mode: min}}
        measure_latency: false
model:
  width: 12
"""
NAMES = {
    "lightning": {"lightning": "lightning.pytorch", "cli": "cli", "package": "lightning_taylor"},
    "pytorch_lightning": {"lightning": "pytorch_lightning", "cli": "cli", "package": "lightning_taylor.pl"},
}


def script(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """``python train.py ARGS`` in the project's folder."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "train.py", *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def script_here(folder: Path, *args: str) -> None:
    """Do the same in this process, where nothing has to be imported again."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        patch.setattr(sys, "argv", ["train.py", *args])
        patch.chdir(folder)
        runpy.run_path("train.py", run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_script_and_its_yaml_prune_resume_and_test(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "pytorch_lightning":
        pytest.importorskip(name)
    (tmp_path / "train.py").write_text(SCRIPT.format(**NAMES[name]))
    (tmp_path / "config.yaml").write_text(CONFIG.format(**NAMES[name]))
    command = ("fit", "--config", "config.yaml", "--trainer.callbacks.target.flops=0.45")
    if name == "lightning":
        fit = script(tmp_path, *command)
        assert fit.returncode == 0, fit.stderr
        out = fit.stdout
    else:
        script_here(tmp_path, *command)
        out = capsys.readouterr().out
    assert "Target met" in out
    folder = tmp_path / "logs" / "lightning_logs" / "version_0"
    report = json.loads((folder / "pruning.json").read_text())
    assert report["met"]
    assert report["asked"] == {"flops": 0.45, "params": 0.6}
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        flops = [float(row["pruning/flops"]) for row in csv.DictReader(file) if row.get("pruning/flops")]
    assert flops[-1] <= 0.45 < flops[0]
    last = folder / "checkpoints" / "last.ckpt"
    # The configuration that Lightning saves beside the logs is one to start from again.
    script_here(tmp_path, "fit", "--config", str(folder / "config.yaml"), "--trainer.max_epochs=4",
                f"--ckpt_path={last}")  # fmt: skip
    ends = [torch.load(path, weights_only=True) for path in (last, *tmp_path.glob("logs/*/version_1/**/last.ckpt"))]
    assert [(end["epoch"], end["global_step"]) for end in ends] == [(2, 24), (3, 32)]
