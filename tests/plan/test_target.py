from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_taylor.plan.cost import Cost
from lightning_taylor.plan.target import Target

percents = st.integers(1, 100).map(lambda n: n / 100)


@given(percents, st.integers(1, 10**12))
def test_a_limit_is_the_exact_fraction_rounded_down(fraction, dense):
    limit = Target(flops=fraction).limits(Cost(dense, 1, 1))["flops"]
    assert limit == int(Fraction(str(fraction)) * dense)


@given(percents, percents, st.integers(1, 1000), st.integers(1, 1000))
def test_a_target_is_met_only_if_every_part_is(flops, params, flops_left, params_left):
    dense = Cost(1000, 1000, 10)
    cost = Cost(flops_left, params_left, 10)
    both = Target(flops=flops, params=params).met(cost, dense)
    assert both == (Target(flops=flops).met(cost, dense) and Target(params=params).met(cost, dense))


@given(percents, st.sampled_from(["cubic", "linear"]), st.floats(0, 1), st.floats(0, 1))
def test_the_way_falls_from_all_to_exactly_the_target(fraction, curve, early, late):
    target = Target(flops=fraction, channels=fraction)
    early, late = sorted((early, late))
    assert target.interpolate(0.0, curve).flops == pytest.approx(1)
    assert target.interpolate(1.0, curve) == target
    assert 1 >= target.interpolate(early, curve).flops >= target.interpolate(late, curve).flops >= fraction


@given(percents, st.floats(0, 2))
def test_a_measured_part_is_met_only_by_a_measurement_within_it(fraction, ratio):
    dense = Cost(1000, 1000, 10)
    target = Target(flops=1.0, latency=fraction)
    assert target.met(dense, dense, {"latency": ratio}) == (ratio <= fraction)
    assert not target.met(dense, dense)
    assert not target.met(dense, dense, {"memory": 0.0})
    assert not target.met(dense, dense, {"latency": float("nan")})
    assert target.achieved(dense, dense, {"latency": ratio, "memory": 0.5}) == {"flops": 1.0, "latency": ratio}
    assert target.achieved(dense, dense) == {"flops": 1.0}


def test_the_parts_that_are_missed_are_named_with_what_there_is():
    target = Target(flops=0.5, params=0.5, latency=0.5, memory=0.5)
    missed = target.missed(Cost(600, 400, 10), Cost(1000, 1000, 10), {"latency": 0.7, "memory": 0.4})
    assert missed == {"flops": 0.6, "latency": 0.7}


def test_a_target_splits_into_what_is_exact_and_what_is_measured():
    target = Target(params=0.5, latency=0.7, memory=0.8)
    assert target.exact == Target(params=0.5)
    assert target.to_measure == ("latency", "memory")
    assert Target(memory=0.8).exact is None
    assert Target(flops=0.5).to_measure == ()
    assert target.limits(Cost(10, 10, 10)) == {"params": 5}


def test_a_measured_part_is_approached_along_the_same_curve():
    way = Target(latency=0.6, memory=0.2).interpolate(0.5, "linear")
    assert (way.latency, way.memory) == (pytest.approx(0.8), pytest.approx(0.6))


def test_the_cubic_way_is_ahead_of_the_linear_one_in_the_middle():
    target = Target(flops=0.2)
    assert target.interpolate(0.5, "cubic").flops == pytest.approx(0.2 + 0.8 / 8)
    assert target.interpolate(0.5, "linear").flops == pytest.approx(0.6)


def test_a_float_is_a_fraction_of_the_flops():
    assert Target.of(0.25) == Target(flops=0.25)
    assert Target.of(Target(params=0.5)) == Target(params=0.5)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (5, "for 5 percent write 0.05; to become 5 times smaller write 0.2"),
        (0, "nothing would remain"),
        (-0.5, "0.5 halves it"),
        (400, "0.5 halves it"),
        (float("nan"), "0.5 halves it"),
    ],
)
def test_a_value_outside_the_range_is_refused_with_a_way_out(value, hint):
    with pytest.raises(ValueError, match=f"target params={value} is not a fraction.*{hint}"):
        Target(params=value)


def test_an_empty_target_is_refused():
    with pytest.raises(ValueError, match="at least one of flops="):
        Target()


@pytest.mark.parametrize(("progress", "curve"), [(-0.1, "cubic"), (1.1, "linear"), (0.5, "square")])
def test_a_way_that_does_not_exist_is_refused(progress, curve):
    with pytest.raises(ValueError, match="must"):
        Target(flops=0.5).interpolate(progress, curve)
