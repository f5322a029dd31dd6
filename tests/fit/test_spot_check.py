"""``oracle_sample``: the scores of an event against the oracle, in the middle of a fit that does not notice."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from fit.boring import Boring, loader, trainer
from lightning_taylor import Gradual, TaylorPruning


class Noisy(Boring):
    """Draws from torch's generator in every step, and has a batch norm that counts its batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = super().training_step((x + 0.1 * torch.randn_like(x), y), batch_idx)
        self.log("train_loss", loss)
        return loss


class Reading(Noisy):
    """Asks the Trainer for something."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + self.trainer.current_epoch)


def fitted(module: type[Boring], folder: Path, **kwargs: Any) -> tuple[Boring, TaylorPruning]:
    torch.manual_seed(0)
    conv1, conv2, conv3 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Conv2d(12, 2, 3)
    net = nn.Sequential(conv1, nn.BatchNorm2d(16), nn.ReLU(), conv2, nn.ReLU(), conv3)
    pruner = TaylorPruning(0.5, Gradual(4, 2, 18), measure_latency=False, **kwargs)
    fit, run = module(net), trainer([pruner], logger=CSVLogger(folder, version=0), log_every_n_steps=1)
    run.fit(fit, loader())
    return fit, pruner


def test_a_fit_that_is_checked_is_the_same_fit_bit_for_bit(tmp_path: Path) -> None:
    plain, _ = fitted(Noisy, tmp_path / "plain")
    checked, _ = fitted(Noisy, tmp_path / "checked", oracle_sample=6)
    for (name, one), other in zip(plain.state_dict().items(), checked.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_correlation_of_every_event_is_logged_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(Noisy, tmp_path, oracle_sample=100)
    (log,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(log.read_text().splitlines()) if row.get("pruning/oracle_correlation")]
    (report,) = tmp_path.rglob("pruning.json")
    found = json.loads(report.read_text())
    events = found["oracle"]
    assert [row["step"] for row in events] == [row["step"] for row in found["events"]]
    assert len(events) >= 3
    logged = [float(row["pruning/oracle_correlation"]) for row in rows]
    assert logged == pytest.approx([row["correlation"] for row in events])
    assert f"mean rank correlation {sum(logged) / len(logged):.2f} over {len(events)} events" in capsys.readouterr().out
    (page,) = tmp_path.rglob("pruning.html")
    assert "scores against the oracle" in page.read_text()
    assert all(-1 <= value <= 1 for value in logged)
    assert sum(logged) / len(logged) > 0.3  # first-order scores of all channels on the training data


def test_what_was_checked_travels_with_a_checkpoint(tmp_path: Path) -> None:
    _, pruner = fitted(Noisy, tmp_path, oracle_sample=4)
    state = pruner.state_dict()
    assert [row["step"] for row in state["report"]["oracle"]] == [row["step"] for row in state["record"]["events"]]


def test_a_step_that_needs_its_trainer_is_said_once_and_the_fit_goes_on(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, pruner = fitted(Reading, tmp_path, oracle_sample=4)
    ours = [str(w.message) for w in said if "oracle_sample" in str(w.message)]
    assert len(ours) == 1
    assert ours[0].startswith("oracle_sample: Reading's training step does not run apart from its Trainer: ")
    assert pruner.reached


def test_nothing_is_measured_if_it_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_taylor.study.spot_check.spot_check", lambda *_, **__: pytest.fail("it was"))
    _, pruner = fitted(Noisy, tmp_path)
    assert pruner.reached
    assert isinstance(pruner, L.Callback)
