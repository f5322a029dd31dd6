"""Operators are timed once at a few widths; the times between come from a line."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from lightning_taylor.measure.dry_pass import DryPass, OperatorCall
from lightning_taylor.measure.operator_times import OperatorTimes, timer_on
from lightning_taylor.utilities.calls import ForwardCall


def shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    return {"0.weight": (hidden, 3, 3, 3), "0.bias": (hidden,), "2.weight": (hidden, hidden, 3, 3), "2.bias": (hidden,),
            "5.weight": (2, hidden)}  # fmt: skip


@pytest.fixture
def dry() -> DryPass:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)
    )
    return DryPass(net.eval(), [ForwardCall("", (torch.rand(1, 3, 8, 8),))], 4)


def work(call: OperatorCall) -> float:
    """A machine without overheads: a multiply-add takes a second, and so does any other operator's number."""
    if "conv" in str(call.func):
        return 16.0 * call.specs[1].entries
    if "mm" in str(call.func):
        return 4.0 * call.specs[-1].entries
    return float(call.specs[0].entries)


def test_a_sum_of_products_of_widths_is_met_between_the_points_and_beyond(dry: DryPass) -> None:
    passes = [dry(shapes(width))[0] for width in (8, 16, 24, 32)]
    times = OperatorTimes(passes, work)
    for width in (4, 8, 13, 24, 31, 32):
        operators = dry(shapes(width))[0]
        # Between its points a product of two equal widths lies a little under the line.
        assert times.seconds(operators) == pytest.approx(sum(map(work, operators)), rel=0.25 if width < 8 else 0.05)


def test_an_operator_is_timed_once_and_only_when_it_is_asked_for(dry: DryPass) -> None:
    asked: Counter[tuple[str, str]] = Counter()

    def timer(call: OperatorCall) -> float:
        asked[call.key] += 1
        return work(call)

    passes = [dry(shapes(width))[0] for width in (16, 32)]
    times = OperatorTimes(passes, timer)
    assert not asked
    for _ in range(2):
        times.saved(passes[1], passes[0])
    assert set(asked.values()) == {1}
    # Two points for the first convolution and for the last layer, four for the one between, two for the rest.
    assert sum("conv" in name for name, _ in asked) == 2 + 4


def test_a_time_that_falls_where_the_network_grows_was_disturbed(dry: DryPass) -> None:
    passes = [dry(shapes(width))[0] for width in (8, 16, 32)]
    disturbed = OperatorTimes(passes, lambda call: work(call) + 1e9 * ("16, 16" in repr(call.leaves)))
    assert disturbed.saved(passes[2], passes[1]) >= 0
    assert disturbed.saved(passes[1], passes[0]) >= 0


def test_what_takes_no_channels_saves_none(dry: DryPass) -> None:
    passes = [dry(shapes(width))[0] for width in (16, 32)]
    assert OperatorTimes(passes, work).saved(passes[1], passes[1]) == 0


@pytest.mark.parametrize("dense_is_of_another_kind", [True, False])
def test_an_operator_that_is_not_there_at_other_widths_is_timed_as_it_stands(
    dry: DryPass, dense_is_of_another_kind: bool
) -> None:
    passes = [dry(shapes(width))[0] for width in (8, 16, 32)]
    added = OperatorCall(torch.ops.aten.sigmoid.default, passes[-1][2].leaves[:1], passes[-1][2].structure)
    other = [*passes[-1][:3], added, *passes[-1][3:]]
    times = OperatorTimes([*passes[:-1], other] if dense_is_of_another_kind else passes, work)
    for operators in (*passes, other, [added, added, *passes[1]], passes[1][1:]):
        assert times.seconds(operators) == pytest.approx(sum(map(work, operators)))
        for before in (*passes, other):
            expected = sum(map(work, before)) - sum(map(work, operators))
            assert times.saved(before, operators) == pytest.approx(expected)


def test_a_real_call_takes_some_time(dry: DryPass) -> None:
    assert all(timer_on(torch.device("cpu"))(call) > 0 for call in dry(shapes(8))[0])
