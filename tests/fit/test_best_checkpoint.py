"""``PrunedModelCheckpoint`` compares the networks that are small enough, and keeps the last one all the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from fit.boring import loader, trainer
from fit.nets import Net, fitted, pruning, weights_of
from lightning_taylor import Gradual
from lightning_taylor.fit.best_checkpoint import PrunedModelCheckpoint


def best(folder: Path, **kwargs: Any) -> PrunedModelCheckpoint:
    return PrunedModelCheckpoint(**{"dirpath": folder, "monitor": "score", "mode": "max", **kwargs})


def width(path: str | Path) -> int:
    return weights_of(path)["net.0.weight"].shape[0]


class Scored(Net):
    """Its scores are given, one per epoch."""

    scores = (9.0, 8.0, 1.0, 3.0, 2.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.scores[self.current_epoch])


@pytest.mark.parametrize("save_last", [True, "link", None])
def test_the_best_of_those_that_reached_the_target_is_kept(save_last: Any, tmp_path: Path) -> None:
    # The target is reached in the second epoch, at step 15; its validation is the first that counts.
    checkpoint, module = best(tmp_path, save_last=save_last), Scored()
    module.scores = (9.0, 1.0, 3.0, 2.0)
    fitted(module, tmp_path, checkpoint, max_epochs=4)
    assert torch.load(checkpoint.best_model_path, weights_only=True)["epoch"] == 2
    assert checkpoint.best_model_score == 3.0
    assert width(checkpoint.best_model_path) == module.net[0].out_channels < 8
    assert (tmp_path / "last.ckpt").exists() == bool(save_last)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the target .* was not reached")
def test_the_last_one_is_kept_before_there_is_a_best(tmp_path: Path) -> None:
    for save_last in (True, "link"):
        for triggers in ({}, {"every_n_train_steps": 4}, {"save_on_train_epoch_end": True}):
            folder = tmp_path / f"{save_last} {len(triggers)} {next(iter(triggers), '')}"
            checkpoint = best(folder, save_last=save_last, **triggers)
            pruner = pruning(schedule=Gradual(2, 17, 22))
            with pytest.warns(UserWarning, match="no best checkpoint"):
                fitted(Scored(), folder, pruner, checkpoint, Stop(2))
            assert [path.name for path in folder.glob("*.ckpt")] == ["last.ckpt"]
            assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 16
            assert not checkpoint.best_model_path


class Stop(L.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def test_a_metric_of_the_larger_network_is_not_taken_for_one_of_the_smaller(tmp_path: Path) -> None:
    checkpoint, module = best(tmp_path, every_n_train_steps=1), Scored()
    module.scores = (9.0, 1.0, 3.0)
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if checkpoint.best_model_path:
                seen.append((trainer.global_step, float(checkpoint.best_model_score or 0)))

    fitted(module, tmp_path, checkpoint, Look())
    # Reached after step 15, while the metric at hand was still the dense one's 9; validated again after 16.
    assert seen[0] == (17, 1.0)
    assert all(score < 9 for _, score in seen)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_fit_goes_on_comparing(tmp_path: Path) -> None:
    first, again = Scored(), Scored()
    first.scores = again.scores = (9.0, 5.0, 3.0, 6.0)
    checkpoint = best(tmp_path, save_last=True)
    fitted(first, tmp_path, checkpoint, max_epochs=2)
    kept = checkpoint.best_model_path
    resumed = best(tmp_path, save_last=True)
    run = trainer([pruning(), resumed], default_root_dir=tmp_path, enable_checkpointing=True, max_epochs=4)
    run.fit(again, loader(), loader(seed=1), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.best_model_score == 6.0
    assert resumed.best_model_path != kept
    assert torch.load(resumed.best_model_path, weights_only=True)["epoch"] == 3


def test_it_needs_a_pruning_in_the_trainer(tmp_path: Path) -> None:
    run = trainer([best(tmp_path)], enable_checkpointing=True, default_root_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match="needs a TaylorPruning"):
        run.fit(Net(), loader(), loader(seed=1))
