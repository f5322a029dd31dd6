"""The criteria in whole fits: resumed in the middle of a window, on two ranks, with accumulation, with a memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fit.boring import trainer
from fit.harness import Recording
from fit.rank_fits import Case, fits_one_after_another, spread
from fit.resuming import EPOCHS, SCHEDULE, Keep, KillAfter, KilledError, Module, differences, kept
from torch import Tensor

from lightning_taylor import TaylorPruning
from lightning_taylor.criteria.activations import ActivationMean, ActivationStd, APoZ
from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.combined import Combined
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch

STATEFUL: tuple[Criterion, ...] = (
    ActivationStd(), APoZ(), MutualInformation(bins=3, examples=16), OBD(), Taylor(absolute="window"),
    TaylorBatch(momentum=0.9), Combined(Taylor(), ActivationMean()),
)  # fmt: skip


def run(folder: Path, criterion: Criterion, *, kill: int | None = None, resume: Path | None = None) -> None:
    torch.manual_seed(0)
    callbacks: list[Any] = [TaylorPruning(0.5, SCHEDULE, criterion, measure_latency=False), Keep(folder)]
    if kill is not None:
        callbacks.append(KillAfter(kill, folder / "kill.ckpt"))
    fitter = trainer(callbacks, max_epochs=EPOCHS, enable_checkpointing=True, default_root_dir=folder)
    fitter.fit(Module(), ckpt_path=resume, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", STATEFUL, ids=repr)
def test_a_fit_that_is_resumed_between_two_events_equals_the_whole_one(criterion: Criterion, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    run(whole, criterion)
    with pytest.raises(KilledError):
        run(parts, criterion, kill=7)
    run(parts, criterion, resume=parts / "kill.ckpt")
    assert differences(kept(whole), kept(parts)) == []


@pytest.mark.slow
def test_ranks_have_equal_scores_and_remove_the_same(tmp_path: Path) -> None:
    """With each criterion, all in the same two processes: to start them takes longer than a fit."""
    cases = {repr(criterion): Case(pruning={"criterion": criterion}) for criterion in STATEFUL}
    found = fits_one_after_another(2, cases, tmp_path)
    assert {name: set(spread(results).values()) for name, results in found.items()} == {name: {0.0} for name in cases}
    assert {name for name, results in found.items() if not all(result["reached"] for result in results)} == set()
    assert {name for name, results in found.items() if len(results[0]["events"]) <= 1} == set()


def test_after_an_event_a_scorer_follows_the_one_before_it(tmp_path: Path) -> None:
    recording, followed = Recording(TaylorBatch(momentum=0.5)), []
    start = recording.scorer

    def noting(*args: Any, **kwargs: Any) -> Scorer:
        scorer = start(*args, **kwargs)
        carry_over = scorer.carry_over

        def note(before: Scorer, remove: Mapping[str, Tensor]) -> None:
            followed.append((before, {name: index_R.tolist() for name, index_R in remove.items()}))
            carry_over(before, remove)

        scorer.carry_over = note  # type: ignore[method-assign]
        return scorer

    recording.scorer = noting  # type: ignore[method-assign]
    pruner = TaylorPruning(0.5, SCHEDULE, recording, measure_latency=False)
    trainer([pruner], max_epochs=EPOCHS, default_root_dir=tmp_path).fit(Module())
    events = pruner.state_dict()["record"]["events"]
    assert len(events) > 2
    # After the last event nothing is scored any more.
    assert [before for before, _ in followed] == recording.scorers[:-1]
    assert [remove for _, remove in followed] == [event["removed"] for event in events[:-1]]
    assert all(any(key.startswith("history.") for key in scorer.state()) for scorer in recording.scorers[1:])
