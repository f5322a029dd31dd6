from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lightning_taylor.plan.fit_length import FitLength
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
        (lambda: Gradual(start_step=100, end_step=50), "end_step=50 must be larger than start_step=100"),
        (lambda: Gradual(start=0.5, end=0.1), "end=0.1 must be larger than start=0.5"),
        (lambda: Gradual(start=10, start_step=5), r"start_step=5 and start=10 say the same thing twice"),
        (lambda: Gradual(end=20), r"end must be a fraction of the fit, from 0 to 1, got 20; for epochs add unit="),
        (lambda: Gradual(end=-1, unit="epochs"), "end must be a number of epochs of at least 0, got -1"),
        (lambda: Gradual(unit="steps"), "unit must be one of 'fit', 'epochs', got 'steps'"),
        (lambda: Iterative(), "Iterative needs every_n_steps, or every"),
        (lambda: OneShot(), "OneShot needs step, or at"),
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
    [
        Gradual(5, 0, 40, "linear"),
        OneShot(12),
        Iterative(10, 1, start_step=5),
        Gradual(every=0.02, start=0.1, end=0.66),
        OneShot(at=2.5, unit="epochs"),
        Iterative(every=1, start=3, unit="epochs"),
    ],
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


@pytest.mark.parametrize(
    ("schedule", "in_steps"),
    [
        (Gradual(every=0.02, start=0.1, end=0.66), Gradual(20, 100, 660)),
        (Gradual(every=0.5, start=2, end=10, unit="epochs"), Gradual(25, 100, 500)),
        (Gradual(every_n_steps=7, start=0.1, end_step=400), Gradual(7, 100, 400)),
        (Gradual(curve="linear"), Gradual(23, 100, 666, "linear")),
        (Gradual(7, 30, 60), Gradual(7, 30, 60)),
        (OneShot(at=0.25), OneShot(250)),
        (OneShot(at=1.5, unit="epochs"), OneShot(75)),
        (Iterative(every=1, start=3, unit="epochs"), Iterative(50, 1, 150)),
        (Iterative(every=0.01, channels_per_event=4), Iterative(10, 4)),
    ],
    ids=repr,
)
def test_a_schedule_in_fractions_or_epochs_is_laid_over_the_fit(schedule, in_steps):
    assert schedule.in_steps(FitLength(steps=1000, epoch=50)) == in_steps


@given(st.integers(2, 300), st.floats(0, 0.9), st.floats(0.01, 1))
def test_any_fractions_leave_an_event_in_any_fit(total, start, more):
    schedule = Gradual(every=0.5, start=start, end=min(1.0, start + more)).in_steps(FitLength(total))
    schedule.check(total)
    assert schedule.events(total)[-1] == schedule.end_step


def test_the_default_is_a_gradual_that_says_nothing():
    assert Gradual().in_steps(FitLength(3000)) == default_schedule(3000)


@pytest.mark.parametrize("schedule", [Gradual(), OneShot(at=0.1), Iterative(every=1, unit="epochs")], ids=repr)
def test_a_length_that_nobody_knows_is_named_with_the_ways_out(schedule):
    with pytest.raises(ValueError, match=r"length is unknown, and .* depends on it: .*, or give it in steps"):
        schedule.in_steps(FitLength(float("inf")))


def test_a_schedule_that_is_not_laid_over_a_fit_has_no_events_yet():
    with pytest.raises(ValueError, match=r"Gradual\(curve='cubic', end=0.5\) depends on the length of the fit"):
        Gradual(end=0.5).is_event(3)


def test_one_that_would_end_before_it_starts_in_this_fit_says_where():
    with pytest.raises(ValueError, match="starts at step 100 of this fit and ends at step 50"):
        Gradual(end_step=50).in_steps(FitLength(1000))
