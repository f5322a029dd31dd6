"""The report's metrics are those that the validation logged, under whatever names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import zoo
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from fit.boring import Validated, loader, trainer
from lightning_taylor import OneShot, TaylorPruning


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


def report(folder: Path, step: int, others: Sequence[L.Callback] = (), **kwargs: Any) -> dict[str, Any]:
    pruner = TaylorPruning(0.5, schedule=OneShot(step), measure_latency=False, verbose=False, **kwargs)
    run = trainer([*others, pruner], max_epochs=2, logger=CSVLogger(folder), log_every_n_steps=1)
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


def test_without_one_the_dense_metrics_are_unknown_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(tmp_path, 3)
    assert (found["metrics"], found["baseline"]["step"]) == ({}, None)
    out = " ".join(capsys.readouterr().out.split())
    assert "Metrics when dense: unknown, since no validation came before the first event at step 3" in out
    assert "val_acc unknown " in out
