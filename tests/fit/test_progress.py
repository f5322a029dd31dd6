"""The events of one fit: laid over its length once, and kept by a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from lightning_taylor.fit.progress import ScheduleProgress
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.pace import Standing
from lightning_taylor.plan.schedule import Gradual, Iterative, OneShot, Schedule, default_schedule


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


def manual(schedule: Schedule | None, batches: int, save_at: int = 0) -> Generator[ScheduleProgress, bool, None]:
    """One fit in manual optimization, seen after each of its batches; from ``save_at`` on a resumed one goes on.

    Send it whether the batch ended with an optimizer step.
    """
    progress = ScheduleProgress()
    progress.set_schedule(schedule, FitLength(batches, 10))
    for batch in range(1, batches + 1):
        if batch == save_at:
            progress = ScheduleProgress(progress.step, progress.due, progress.length, progress.pace)
            progress.set_schedule(schedule, FitLength(batches - batch + 1, 10))
        if (yield progress):
            progress.advance()
            progress.follow_pace(schedule, Standing(batch, progress.step, most_batches=batches, epoch=10))


RHYTHMS: dict[str, Callable[[int], bool]] = {
    "every batch": lambda batch: True,
    "every fourth": lambda batch: batch % 4 == 0,
    "first at the first": lambda batch: batch % 4 == 1,
    "three of eight": lambda batch: batch % 8 in (3, 4, 0),
    "one is left out": lambda batch: batch != 50,
    "slower later": lambda batch: batch < 30 or batch % 4 == 0,
    "faster later": lambda batch: batch > 45 or batch in (5, 45),
}


def events_of(schedule: Schedule | None, rhythm: str, save_at: int = 0) -> tuple[dict[int, int], int]:
    """Batch -> the step of the event that was carried out then, until the last; and how many steps the fit has."""
    fit, due = manual(schedule, 200, save_at), {}
    progress = next(fit)
    for batch in range(1, 200):
        progress = fit.send(RHYTHMS[rhythm](batch))
        if progress.due is not None:
            due[batch] = progress.due
            if isinstance(progress.schedule, OneShot) or progress.due == progress.schedule.end_step:
                break
            progress.due = None
    return due, sum(map(RHYTHMS[rhythm], range(1, 200)))


@pytest.mark.parametrize("rhythm", RHYTHMS)
@pytest.mark.parametrize("at", [0.01, 0.1, 0.4, 0.5, 0.6])
def test_the_only_event_of_a_fit_comes_whatever_the_pace(at: float, rhythm: str) -> None:
    found, steps = events_of(OneShot(at=at), rhythm)
    (due,) = found.values()
    assert due <= max(3, (at + 0.3) * steps)


@pytest.mark.parametrize("rhythm", RHYTHMS)
@pytest.mark.parametrize("schedule", [None, Gradual(start=0.2, end=0.6), Gradual(2, end=0.95)])
def test_the_last_event_of_a_fit_comes_whatever_the_pace(schedule: Schedule | None, rhythm: str) -> None:
    found, steps = events_of(schedule, rhythm)
    assert list(found.values())[-1] < steps
    assert max(found) < 199


@pytest.mark.parametrize("rhythm", ["every batch", "every fourth", "first at the first", "three of eight"])
def test_a_steady_pace_gives_the_schedule_of_a_fit_of_that_length(rhythm: str) -> None:
    found, steps = events_of(None, rhythm)
    first, *_, last = found.values()
    whole = default_schedule(steps)
    assert last == pytest.approx(whole.end_step, abs=2)
    assert first <= whole.start_step + 2 * whole.every_n_steps


@pytest.mark.parametrize("rhythm", RHYTHMS)
@pytest.mark.parametrize("schedule", [None, OneShot(at=0.5), Gradual(start=0.2, end=0.6)])
def test_a_fit_that_is_resumed_anywhere_keeps_its_pace(schedule: Schedule | None, rhythm: str) -> None:
    expected = events_of(schedule, rhythm)
    for save_at in range(2, max(expected[0]) + 1):  # after the last event nothing is laid
        assert events_of(schedule, rhythm, save_at) == expected, save_at


def test_a_schedule_that_a_fit_seems_too_short_for_stays() -> None:
    schedule = Gradual(start_step=50, end=0.9)
    progress = ScheduleProgress()
    progress.set_schedule(schedule, FitLength(800))
    for batch in (5, 45):
        progress.advance()
        progress.follow_pace(schedule, Standing(batch, progress.step, most_batches=800))
    assert progress.schedule == schedule.in_steps(FitLength(800))


def test_what_was_due_in_another_schedule_is_looked_up_in_the_new_one() -> None:
    for schedule, expected in ((OneShot(24), None), (OneShot(10), 10), (Iterative(7), 14), (Iterative(5), 20)):
        progress = ScheduleProgress(step=20, due=20, length=FitLength(30))
        progress.set_schedule(schedule, FitLength(30))
        assert progress.due == expected, schedule


def test_a_fit_that_is_made_longer_may_have_a_longer_schedule() -> None:
    progress = ScheduleProgress(step=5, length=FitLength(30))
    progress.set_schedule(OneShot(40), FitLength(55))
    assert progress.schedule == OneShot(40)
    with pytest.raises(ValueError, match="needs 70 optimizer steps"):
        progress.set_schedule(OneShot(70), FitLength(55))


def test_a_fit_that_was_over_and_goes_on_has_events_again() -> None:
    progress = ScheduleProgress(step=30, length=FitLength(30))
    progress.set_schedule(None, FitLength(60))
    assert progress.schedule == default_schedule(90)
