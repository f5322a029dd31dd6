"""Killed after any step and resumed from the unpruned definition, a fit ends bit for bit as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fit.resuming import KINDS, KilledError, differences, kept, run
from lightning_taylor import Gradual, Iterative, OneShot, Target, TaylorPruning
from lightning_taylor.fit import options
from lightning_taylor.plan.schedule import Schedule

# Killed at the end of the epoch before its averaging starts, SWA does not resume alike, with or without pruning.
CASES = [(kind, kill) for kind in KINDS for kill in (4, 8) if (kind, kill) != ("swa", 8)]
MORE_CASES = [pytest.param(kind, kill, marks=pytest.mark.slow) for kind in KINDS for kill in (1, 3, 6)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Give what a whole fit of a kind ends with; each is made once."""

    @cache
    def ended(kind: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("whole")
        run(folder, kind)
        return kept(folder)

    return ended


@pytest.mark.parametrize(("kind", "kill"), [*CASES, *MORE_CASES])
def test_resume_equals_uninterrupted(
    kind: str, kill: int, uninterrupted: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, kind, kill=kill)
    run(tmp_path, kind, resume=tmp_path / "kill.ckpt")
    assert differences(uninterrupted(kind), kept(tmp_path)) == []


@pytest.mark.parametrize("target", [Target(flops=0.09), Target(memory=0.3)], ids=["checked at the start", "measured"])
def test_a_multiple_that_was_lowered_for_the_target_stays_what_it_was(target: Target, tmp_path: Path) -> None:
    with mock.patch.object(options, "own_round_to", return_value=4):
        run(tmp_path, "plain", target=target)
        whole = kept(tmp_path)
        with pytest.raises(KilledError):
            run(tmp_path, "plain", target=target, kill=9)
        run(tmp_path, "plain", target=target, resume=tmp_path / "kill.ckpt")
    assert any(len(tensor) % 4 for name, tensor in whole["model"].items() if name.endswith("0.weight"))
    assert differences(whole, kept(tmp_path)) == []


@pytest.mark.parametrize(
    "schedule", [None, OneShot(at=0.9), OneShot(40), Gradual(5, 30, 40), Gradual(5, end=0.9), Iterative(2, 4)], ids=repr
)
def test_a_fit_that_was_over_goes_on_to_a_smaller_target(schedule: Schedule | None, tmp_path: Path) -> None:
    first = run(tmp_path, "plain", target=0.7, changed={"schedule": None})
    first.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.warns(UserWarning, match="resumed with other settings"):
        second = run(
            tmp_path, "plain", target=0.4, changed={"schedule": schedule}, resume=tmp_path / "end.ckpt", max_epochs=6
        )
    (pruner,) = (callback for callback in second.callbacks if isinstance(callback, TaylorPruning))  # type: ignore[attr-defined]
    events = pruner._session.pruner.record.events
    assert pruner.reached
    assert schedule is None or isinstance(schedule, Iterative) or events[-1].step > 30
    assert first.global_step < events[-1].step < second.global_step
