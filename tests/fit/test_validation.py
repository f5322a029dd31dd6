"""The report's metrics are those that the validation logged, under whatever names."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import zoo
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fit.boring import Validated, loader, trainer
from fit.harness import pruning
from fit.resuming import StatefulLoader
from lightning_taylor import Gradual, Guard, OneShot, TaylorPruning


class Chatty(Validated):
    """Logs in training too, and in validation under names that the report has columns for."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log_dict({"loss": loss, "score": 1.0}, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("flops", 12.0)
        self.log("train_set_acc", 0.5)
        self.log("both", 1.0, on_step=True, on_epoch=True)


class Elsewhere(L.Callback):
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.callback_metrics["from_a_callback"] = Tensor([1.0])


def report(
    folder: Path, step: int, others: Sequence[L.Callback] = (), limit_val_batches: float = 1.0, **kwargs: Any
) -> dict[str, Any]:
    pruner = TaylorPruning(0.5, schedule=OneShot(step), measure_latency=False, verbose=False, **kwargs)
    run = trainer([*others, pruner], max_epochs=2, logger=CSVLogger(folder), limit_val_batches=limit_val_batches)
    run.fit(Chatty(zoo.Residual()), loader(), loader(seed=1))
    return json.loads((Path(run.log_dir or "") / "pruning.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report(tmp_path_factory.mktemp("fit"), 12, [LearningRateMonitor(), Elsewhere()])


def test_no_learning_rate_and_nothing_of_the_training_is_a_metric(whole: dict[str, Any]) -> None:
    assert set(whole["metrics"]) == {"val_acc", "flops", "train_set_acc", "both", "both_epoch"}


def test_a_metric_with_the_name_of_a_column_takes_nothing_from_it(whole: dict[str, Any]) -> None:
    first = whole["curve"][0]
    assert first["flops"] == whole["flops"]["before"]
    assert first["flops (logged)"] == whole["metrics"]["flops"]["before"] == 12.0


def test_the_baseline_is_the_last_validation_before_the_first_event(whole: dict[str, Any]) -> None:
    assert whole["baseline"] == {"step": 8, "given": []}


def test_where_none_came_before_the_first_event_one_is_run_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(tmp_path, 3)
    assert found["baseline"] == {"step": 3, "given": []}
    assert [row["step"] for row in found["curve"]] == [3, 8, 16]
    assert 0 <= found["metrics"]["val_acc"]["before"] <= 1
    assert "of the validation at step 3, before the first event at step 3" in " ".join(capsys.readouterr().out.split())


def test_none_is_run_for_metrics_that_are_given(tmp_path: Path) -> None:
    found = report(tmp_path, 3, baseline={"val_acc": 0.9})
    assert (found["baseline"], found["metrics"]["val_acc"]["before"]) == ({"step": None, "given": ["val_acc"]}, 0.9)


def test_without_a_validation_nothing_is_said_of_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(tmp_path, 3, limit_val_batches=0)["metrics"] == {}
    assert "when dense" not in capsys.readouterr().out


class Dropping(Validated):
    """Draws random numbers in training and in validation, and has a mode that a validation switches."""

    def __init__(self, dropout: float) -> None:
        super().__init__(nn.Sequential(zoo.Residual(), nn.Dropout(dropout)))

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        torch.rand(3)


def dropping(
    folder: Path, others: Sequence[L.Callback] = (), resume: str | None = None, dropout: float = 0.5, **kwargs: Any
) -> Dropping:
    torch.manual_seed(3)
    module, pruner = (
        Dropping(dropout),
        TaylorPruning(0.5, Gradual(2, 2, 8), measure_latency=False, verbose=False, **kwargs),
    )
    run = trainer([pruner, *others], max_epochs=2, default_root_dir=folder, enable_checkpointing=bool(others))
    shuffled = DataLoader(loader(seed=1).dataset, 8, shuffle=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your `val_dataloader`'s sampler has shuffling enabled")
        run.fit(module, StatefulLoader(), shuffled, ckpt_path=resume, weights_only=True if resume else None)
    return module


@pytest.mark.slow
def test_that_validation_changes_nothing_of_the_training(tmp_path: Path) -> None:
    with_it, without = dropping(tmp_path), dropping(tmp_path, baseline={"val_acc": 0.5})
    assert all(p.equal(q) for p, q in zip(with_it.parameters(), without.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [2, 6])
def test_a_fit_that_is_resumed_around_it_ends_as_if_uninterrupted(tmp_path: Path, step: int) -> None:
    whole, resumed = (
        partial(ModelCheckpoint, tmp_path / n, "{step}", every_n_train_steps=2, save_top_k=-1) for n in "wr"
    )
    uninterrupted = dropping(tmp_path / "whole", [whole()], dropout=0)
    # No dropout: Lightning's checkpoints hold no state of the random numbers.
    went_on = dropping(tmp_path / "resumed", [resumed()], str(tmp_path / "w" / f"step={step}.ckpt"), dropout=0)
    first, second = (json.loads((tmp_path / run / "pruning.json").read_text()) for run in ("whole", "resumed"))
    assert first["baseline"] == second["baseline"] == {"step": 4, "given": []}
    assert all(p.equal(q) for p, q in zip(uninterrupted.parameters(), went_on.parameters(), strict=True))


def test_other_callbacks_and_the_logger_see_an_ordinary_validation(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", "{step}", monitor="val_acc", save_top_k=-1)
    run = trainer(
        [pruning(schedule=OneShot(3)), best], max_epochs=1, logger=CSVLogger(tmp_path), enable_checkpointing=True
    )
    run.fit(Validated(zoo.Residual()), loader(), loader(seed=1))
    with open(Path(run.log_dir or "") / "metrics.csv") as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["val_acc"]]
    assert logged == [2, 7]  # Lightning's axis counts steps from zero
    assert not run.validating


def kept_going(
    folder: Path,
    others: Sequence[L.Callback] = (),
    resume: str | None = None,
    kind: type[Validated] = Validated,
    **kwargs: Any,
) -> L.Trainer:
    pruner = TaylorPruning(0.5, schedule=OneShot(3), measure_latency=False, verbose=False, **kwargs)
    run = trainer([pruner, *others], max_epochs=4 if resume else 1, default_root_dir=folder, enable_checkpointing=True)
    run.fit(
        kind(zoo.Residual()), StatefulLoader(), loader(seed=1), ckpt_path=resume, weights_only=True if resume else None
    )
    return run


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_fit_that_goes_on_after_the_target_reports_its_validations_too(tmp_path: Path) -> None:
    kept_going(tmp_path, [ModelCheckpoint(tmp_path, "half", save_top_k=-1)])
    run = kept_going(tmp_path / "later", resume=str(tmp_path / "half.ckpt"))
    found = json.loads((tmp_path / "later" / "pruning.json").read_text())
    assert [row["step"] for row in found["curve"]] == [3, 8, 16, 24, 32]
    assert found["metrics"]["val_acc"]["after"] == run.callback_metrics["val_acc"].item()


class Sized(Validated):
    """Logs how many parameters there are."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("size", float(sum(p.numel() for p in self.parameters())))


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:TaylorPruning at step", "ignore:the target")
def test_a_guard_judges_the_last_event_in_the_fit_that_goes_on(tmp_path: Path) -> None:
    # The checkpoint is older than the validation at which the guard goes back.
    saved = partial(ModelCheckpoint, every_n_train_steps=6, save_top_k=-1)
    guard = Guard("size", max_drop=1.0, action="rollback")
    kept_going(tmp_path, [saved(tmp_path, "late")], kind=Sized, guard=guard)
    late = str(tmp_path / "late.ckpt")
    run = kept_going(tmp_path, [saved(tmp_path / "again", "late")], resume=late, kind=Sized, guard=guard)
    assert run.callback_metrics["size"] == sum(p.numel() for p in zoo.Residual().parameters())
