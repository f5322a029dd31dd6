"""Killed by an exception, a signal or on several ranks: resumed, a fit ends bit for bit as if it had not been."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from campaigns import ranks as rank_campaign
from campaigns import resume as resume_campaign
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fit.rank_launch import all_well, on_ranks
from fit.resuming import KilledError, differences, kept, run, run_ranks

EVENT = 5  # the schedule's first, in the first epoch of eight steps


class Strikes(L.Callback):
    """Ends the fit after a step, right after the pruning's own hook."""

    def __init__(self, how: str, step: int) -> None:
        self.how, self.step = how, step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.how == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise KilledError


def saver_of(saver: str, folder: Path) -> L.Callback:
    if saver == "OnExceptionCheckpoint":
        return OnExceptionCheckpoint(folder, "kill")
    return ModelCheckpoint(folder, "kill", save_top_k=0, save_on_exception=True)


def _killed(rank: int, folder: Path, saver: str, how: str, step: int) -> str:
    folder.mkdir()
    try:
        run(folder, "plain", extra=[Strikes(how, step), saver_of(saver, folder)])
    except (KilledError, SIGTERMException) as error:
        return type(error).__name__
    return "ended"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the fit ends with if nothing strikes it."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, "plain")
    return kept(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is set, but there is no last checkpoint", "ignore:.*was called without a model")
@pytest.mark.parametrize("step", [EVENT, EVENT + 1])
@pytest.mark.parametrize("how", ["exception", "SIGTERM"])
@pytest.mark.parametrize("saver", ["OnExceptionCheckpoint", "ModelCheckpoint"])
def test_a_fit_that_was_struck_after_a_step_resumes_bitwise(
    how: str, saver: str, step: int, whole: dict[str, Any], tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    # In a child: a signal would end the tests with it.
    (ended,) = all_well(on_ranks(1, _killed, parts, saver, how, step))
    assert ended == {"exception": "KilledError", "SIGTERM": "SIGTERMException"}[how]
    (saved,) = parts.glob("*.ckpt")
    run(parts, "plain", resume=saved, extra=[saver_of(saver, parts)] if saver == "ModelCheckpoint" else [])
    assert differences(whole, kept(parts)) == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", resume_campaign.PRECISIONS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_equals_uninterrupted_on_every_rank(ranks: int, precision: str) -> None:
    by_kind = resume_campaign.fits_of(ranks, precision, resume_campaign.KINDS, kills=1, seed=1)
    assert list(by_kind) == list(resume_campaign.KINDS)
    for kind, differing_at in by_kind.items():
        assert [differing for differing in differing_at.values()] == [[]], kind


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_fit_goes_on_with_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    run_ranks(before, tmp_path, "plain", kill=EVENT + 1)
    state = torch.load(tmp_path / "kill.ckpt", weights_only=True)["callbacks"]["TaylorPruning"]
    assert [event["step"] for event in state["record"]["events"]] == [EVENT]
    run_ranks(after, tmp_path, "plain", resume=tmp_path / "kill.ckpt")
    report = json.loads((tmp_path / "pruning.json").read_text())
    assert report["met"]
    assert report["events"][0] == {"step": EVENT, **report["events"][0]}
    assert len(report["events"]) > 1
    first, *others = [{n: t for n, t in kept(tmp_path, rank)["model"].items() if "running_" not in n}
                      for rank in range(after)]  # fmt: skip
    assert {n: tuple(t.shape) for n, t in first.items()}["net.one.0.weight"][0] < 8
    assert all(differences(first, other) == [] for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_equal_through_random_fits(ranks: int) -> None:
    assert rank_campaign.main(["--events", "8", "--ranks", str(ranks), "--seed", "2"])
