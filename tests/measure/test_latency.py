from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_taylor.measure import latency
from lightning_taylor.measure.latency import compare_latency, measure_latency


class Clock:
    """A clock that only the timed work moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def worker(self, name, seconds):
        """Work that takes the next of these times at each call."""
        times = iter(seconds)

        def work():
            self.calls.append(name)
            self.now += next(times)

        return work


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", fake.perf_counter)
    return fake


def test_a_measurement_is_the_median_of_what_follows_the_warm_up(clock):
    found = measure_latency(clock.worker("a", [100, 100, 1, 2, 3, 4, 50]), warmup=2, repeats=5)
    assert (found.median, found.low, found.high, found.repeats) == (3, 2, 4, 5)


def test_the_two_are_timed_in_turns_with_the_order_swapped(clock):
    dense, pruned = (clock.worker(name, itertools.repeat(1)) for name in "dp")
    compare_latency(dense, pruned, warmup=1, repeats=6)
    assert "".join(clock.calls) == "dp" + "dppd" * 3


def test_a_drift_of_the_machine_does_not_look_like_a_difference(clock):
    """A machine that slows down by one per cent with every call: in a fixed order the second would seem 1 % slower."""
    slowdown = (1.01**n for n in itertools.count())
    dense, pruned = clock.worker("d", slowdown), clock.worker("p", slowdown)
    found = compare_latency(dense, pruned, warmup=0, repeats=40)
    assert found.speedup == pytest.approx(1, abs=1e-4)
    assert not found.conclusive


def test_a_real_speed_up_is_found_through_noise(clock):
    dense = clock.worker("d", itertools.cycle([2.0, 2.2, 2.1]))
    pruned = clock.worker("p", itertools.cycle([1.0, 1.1]))
    found = compare_latency(dense, pruned, warmup=0, repeats=30)
    assert found.conclusive
    assert found.verdict.startswith("2.00 times faster")


def test_a_slower_model_is_called_slower(clock):
    found = compare_latency(clock.worker("d", itertools.repeat(1)), clock.worker("p", itertools.repeat(3)))
    assert found.verdict.startswith("3.00 times slower (ratio 0.33")


@pytest.mark.parametrize(("repeats", "conclusive"), [(10, False), (20, True)])
def test_few_pairs_have_to_agree_all(clock, repeats, conclusive):
    dense = clock.worker("d", itertools.cycle([1.1] * 9 + [0.9]))
    found = compare_latency(dense, clock.worker("p", itertools.repeat(1)), warmup=0, repeats=repeats)
    assert found.conclusive is conclusive
    assert found.verdict.startswith("no speed-up measured" if not conclusive else "1.10 times faster")


def test_the_work_runs_in_inference_mode():
    modes = []
    measure_latency(lambda: modes.append(torch.is_inference_mode_enabled()), warmup=1, repeats=2)
    assert modes == [True] * 3
    assert not torch.is_inference_mode_enabled()


def test_a_comparison_goes_into_json(clock):
    found = compare_latency(clock.worker("d", itertools.repeat(2)), clock.worker("p", itertools.repeat(1)))
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["dense"]["median"] == 2
    assert plain["conclusive"] is True


def test_too_few_repeats_are_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        measure_latency(lambda: None, repeats=0)
    with pytest.raises(ValueError, match="repeats must be at least 5"):
        compare_latency(lambda: None, lambda: None, repeats=4)
    with pytest.raises(ValueError, match="warmup at least 0"):
        measure_latency(lambda: None, warmup=-1)


def test_a_measurement_waits_for_the_device_that_the_result_lies_on(clock, monkeypatch):
    """Work on a device that returns at once and is done only when somebody waits for it."""
    with FakeTensorMode():
        result = {"logits": [torch.empty(2, device="cuda:0")], "extra": torch.empty(2)}
    waits = clock.worker("wait", itertools.repeat(7))
    devices = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: (devices.append(device), waits()))
    assert measure_latency(lambda: result, warmup=1, repeats=2).median == 7
    assert devices == [torch.device("cuda:0")] * 3
