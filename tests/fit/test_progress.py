"""The events of one fit: laid over its length once, and kept by a checkpoint."""

from __future__ import annotations

import pytest

from lightning_taylor.fit.progress import ScheduleProgress
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.schedule import Gradual, OneShot, Schedule, default_schedule


@pytest.mark.parametrize("schedule", [Gradual(start=0.1, end=0.5), Gradual(start=1, end=5, unit="epochs"), None])
def test_a_resumed_fit_keeps_the_events_that_it_began_with(schedule: Schedule | None) -> None:
    whole = ScheduleProgress()
    whole.set_schedule(schedule, FitLength(steps=100, epoch=10))
    resumed = ScheduleProgress(whole.step, whole.due, whole.length)
    resumed.set_schedule(schedule, FitLength(steps=40, epoch=7))
    assert resumed.schedule == whole.schedule


def test_a_resumed_fit_that_knows_no_epochs_keeps_its_steps() -> None:
    progress = ScheduleProgress(step=3, length=FitLength(50))
    progress.set_schedule(OneShot(at=0.5), FitLength(steps=10))
    assert (progress.step, progress.schedule) == (3, OneShot(25))


def test_a_fit_that_ends_before_its_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 30 optimizer steps"):
        ScheduleProgress().set_schedule(OneShot(at=3, unit="epochs"), FitLength(steps=20, epoch=10))


def test_a_fit_that_turns_out_to_be_shorter_has_its_events_earlier() -> None:
    progress = ScheduleProgress()
    progress.set_schedule(None, FitLength(steps=400, epoch=40))
    for _ in range(2):
        progress.advance()
    progress.shorten(None, FitLength(steps=98.6, epoch=10.9))
    assert (progress.length, progress.schedule) == (FitLength(100, 10), default_schedule(100))
    progress.shorten(None, FitLength(steps=200, epoch=20))
    assert progress.length == FitLength(100, 10)


def test_events_stay_where_they_are_once_the_first_has_come() -> None:
    progress = ScheduleProgress()
    progress.set_schedule(OneShot(at=0.02), FitLength(steps=100))
    for _ in range(2):
        progress.advance()
    progress.shorten(OneShot(at=0.02), FitLength(steps=30))
    assert progress.schedule == OneShot(2)
