"""Which steps are scored: as many as are asked for, the event's own among them, whatever the schedule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_taylor.fit.progress import ScheduleProgress
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.schedule import Gradual, Iterative, OneShot, Schedule
from lightning_taylor.plan.score_batches import ScoreBatches, Window, window_at

STEPS = 80
schedules = st.one_of(
    st.builds(Iterative, st.integers(1, 30), st.just(1), st.integers(0, 40)),
    st.builds(OneShot, st.integers(1, STEPS)),
    st.builds(lambda every, start, more: Gradual(every, start, start + more), st.integers(1, 30), st.integers(0, 30),
              st.integers(1, 50)),
)  # fmt: skip
chosen = st.builds(ScoreBatches, st.integers(1, 40), st.booleans())


def slowly(schedule: Schedule, scored: ScoreBatches) -> set[int]:
    """The steps that are scored, window by window."""
    found: set[int] = set()
    before = 0
    for event in schedule.events(STEPS):
        window = list(range(before + 1, event + 1))
        if not scored.spread or len(window) <= scored.n:
            found |= set(window[-scored.n :])
        else:
            found |= {event - i * len(window) // scored.n for i in range(scored.n)}
        before = event
    return found


@given(schedules, chosen)
def test_the_steps_are_those_that_a_list_of_the_windows_gives(schedule: Schedule, scored: ScoreBatches) -> None:
    found = {step for step in range(1, STEPS + 1) if scored.takes(step, window_at(schedule, step, STEPS))}
    assert found == slowly(schedule, scored)


@given(schedules, chosen, st.integers(1, STEPS - 1))
def test_a_fit_scores_the_same_steps_after_a_resume(schedule: Schedule, scored: ScoreBatches, kill: int) -> None:
    progress, found = ScheduleProgress(), set()
    progress.set_schedule(schedule, FitLength(steps=max(STEPS, 200)))
    for step in range(1, STEPS + 1):
        if progress.scores_next(scored):
            found.add(step)
        progress.advance()
        progress.due = None  # every event happens
        if step == kill:
            progress = ScheduleProgress(progress.step, progress.due, progress.length)
            progress.set_schedule(schedule, FitLength(steps=7))
    later = {step for step in range(1, STEPS + 1) if scored.takes(step, window_at(schedule, step, 200))}
    assert found == later


@given(st.integers(0, 50), st.integers(1, 100), chosen)
def test_a_window_has_as_many_as_are_asked_for_and_spread_ones_lie_evenly(
    after: int, length: int, scored: ScoreBatches
) -> None:
    window = Window(after, after + length, event=True)
    found = [step for step in range(after + 1, window.last + 1) if scored.takes(step, window)]
    assert len(found) == min(scored.n, length)
    assert found[-1] == window.last
    if scored.spread:
        gaps = [b - a for a, b in zip([after, *found], found, strict=False)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("scored", "steps"), [(ScoreBatches(2), [3, 5]), (None, [1, 2, 3, 4, 5])])
def test_nothing_is_scored_once_no_event_follows(scored: ScoreBatches | None, steps: list[int]) -> None:
    progress = ScheduleProgress()
    progress.set_schedule(OneShot(step=5), FitLength(steps=float("inf")))
    found = []
    for _ in range(9):
        found.append(progress.scores_next(scored))
        progress.advance()
        progress.due = None
    assert [step for step, is_scored in enumerate(found, start=1) if is_scored] == steps


def test_an_event_that_waits_is_scored_for_until_it_happens() -> None:
    progress = ScheduleProgress()
    progress.set_schedule(Iterative(every_n_steps=10), FitLength(steps=100))
    found = []
    for step in range(1, 21):
        found.append(progress.scores_next(ScoreBatches(1)))
        progress.advance()
        if step == 13:
            progress.due = None
    assert [step for step, is_scored in enumerate(found, start=1) if is_scored] == [10, 11, 12, 13, 20]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"n": 2.5}, "n must be a whole number of at least 1, got 2.5"),
        ({"n": 2, "spread": "even"}, "spread must be True or False, got 'even'"),
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ScoreBatches(**wrong)
