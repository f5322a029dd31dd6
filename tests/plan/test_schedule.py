from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lightning_taylor.plan.schedule import Demand, Gradual, Iterative, OneShot, Schedule, default_schedule
from lightning_taylor.plan.target import Target

TARGET = Target(flops=0.3, params=0.6)


@st.composite
def graduals(draw):
    start = draw(st.integers(0, 50))
    end = draw(st.integers(start + 1, start + 100))
    return Gradual(draw(st.integers(1, 30)), start, end, draw(st.sampled_from(["cubic", "linear"])))


@given(graduals())
def test_the_last_gradual_event_demands_exactly_the_target(schedule):
    events = schedule.events(schedule.end_step + 50)
    assert events[-1] == schedule.end_step
    assert schedule.demand(events[-1], TARGET) == Demand(TARGET, goal=TARGET)


@given(graduals())
def test_gradual_events_are_evenly_spaced_and_never_ask_for_more_than_before(schedule):
    events = schedule.events(schedule.end_step)
    assert min(events) > schedule.start_step
    gaps = [b - a for a, b in zip([schedule.start_step, *events], events, strict=False)]
    assert set(gaps[:-1]) <= {schedule.every_n_steps}
    assert 0 < gaps[-1] <= schedule.every_n_steps
    remaining = [schedule.demand(step, TARGET).target.flops for step in events]
    assert remaining == sorted(remaining, reverse=True)


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 40), st.integers(0, 200))
def test_iterative_events_come_every_n_steps_after_the_start(every, channels, start, total):
    schedule = Iterative(every_n_steps=every, channels_per_event=channels, start_step=start)
    assert schedule.events(total) == list(range(start + every, total + 1, every))
    assert schedule.demand(start + every, TARGET) == Demand(TARGET, channels)


def test_one_shot_demands_the_target_once():
    schedule = OneShot(step=7)
    assert schedule.events(100) == [7]
    assert schedule.demand(7, TARGET) == Demand(TARGET, goal=TARGET)


@given(st.integers(2, 10**6))
def test_the_default_schedule_leaves_time_before_and_after(total):
    schedule = default_schedule(total)
    schedule.check(total)
    assert schedule.start_step == total // 10
    assert schedule.end_step == 2 * total // 3 < total
    count = -(-(schedule.end_step - schedule.start_step) // schedule.every_n_steps)
    assert count <= 37
    if total >= 600:
        assert 20 <= count <= 30
    elif schedule.end_step - schedule.start_step >= 17:
        assert count >= 17


@pytest.mark.parametrize("steps", [0, 1])
def test_a_fit_too_short_to_prune_in_is_refused(steps):
    with pytest.raises(ValueError, match=f"{steps} optimizer steps is too short.*at least 2"):
        default_schedule(steps)


@pytest.mark.parametrize("steps", [float("inf"), -1, float("nan")])
def test_a_fit_of_unknown_length_must_name_its_schedule(steps):
    with pytest.raises(ValueError, match=r"unknown.*pass schedule="):
        default_schedule(steps)


@pytest.mark.parametrize(
    ("schedule", "needed"),
    [(Gradual(5, 0, 40), 40), (OneShot(12), 12), (Iterative(10, 1, start_step=5), 15)],
)
def test_a_fit_that_ends_before_the_schedule_is_refused(schedule, needed):
    schedule.check(needed)
    with pytest.raises(ValueError, match=f"needs {needed} optimizer steps.*the fit has {needed - 1}"):
        schedule.check(needed - 1)


@pytest.mark.parametrize("schedule", [Gradual(5, 0, 40), OneShot(12), Iterative(10, 1)])
def test_a_step_without_an_event_has_no_demand(schedule):
    with pytest.raises(ValueError, match="no event at step 3"):
        schedule.demand(3, TARGET)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gradual(0, 0, 10), "every_n_steps must be a whole number of at least 1, got 0"),
        (lambda: Gradual(1, 10, 10), "end_step=10 must be larger than start_step=10"),
        (lambda: Gradual(1, 0, 10, "square"), "curve must be one of 'cubic', 'linear'"),
        (lambda: Iterative(1, 0), "channels_per_event must be"),
        (lambda: Iterative(1, 1.5), "channels_per_event must be"),
        (lambda: Iterative(1, 1, -1), "start_step must be"),
        (lambda: OneShot(0), "step must be"),
        (lambda: OneShot(True), "step must be"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "schedule",
    [Gradual(5, 0, 40, "linear"), OneShot(12), Iterative(10, 1, start_step=5)],
)
def test_schedules_are_built_from_their_class_path(schedule):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule", type=Schedule | None)
    class_path = f"lightning_taylor.plan.{type(schedule).__name__}"
    config = {"schedule": {"class_path": class_path, "init_args": vars(schedule)}}
    assert parser.instantiate(parser.parse_object(config)).schedule == schedule


def test_a_target_is_built_from_its_fields_or_a_float():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--target", type=float | Target)
    for config, expected in [({"params": 0.4}, Target(params=0.4)), (0.5, 0.5)]:
        assert parser.instantiate(parser.parse_object({"target": config})).target == expected
