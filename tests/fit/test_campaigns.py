"""Short versions of the campaigns in ``tests/campaigns``; those that take long are marked slow."""

from __future__ import annotations

import pytest
from campaigns import bad_arguments, bad_checkpoints, bad_fits, bad_models, bad_removals
from campaigns.bad_inputs import CASES, judge
from campaigns.cases import Case
from campaigns.kill import campaign
from campaigns.soak import soak

from fit.rank_launch import alone

SLOW = [*bad_fits.CASES, *bad_checkpoints.CASES]


def test_wrong_arguments_are_refused_in_words() -> None:
    assert [found for case in bad_arguments.CASES if (found := _bad(case))] == []


def test_wrong_removals_are_refused_in_words() -> None:
    assert [found for case in bad_removals.CASES if (found := _bad(case))] == []


@pytest.mark.parametrize("case", bad_models.CASES, ids=lambda case: case.name)
def test_strange_models_work_or_are_refused_in_words(case: Case) -> None:
    assert _bad(case) == ""


@pytest.mark.parametrize("case", SLOW[::8], ids=lambda case: case.name)
def test_some_fits_and_checkpoints_work_or_are_refused_in_words(case: Case) -> None:
    assert _bad(case) == ""


@pytest.mark.slow
def test_all_fits_and_checkpoints_work_or_are_refused_in_words() -> None:
    assert [found for case in SLOW if (found := _bad(case))] == []


def test_there_are_many_cases() -> None:
    assert len({case.name for case in CASES}) >= 350


def _bad(case: Case) -> str:
    said = judge(case)
    return f"{case.name}: {said}" if said.startswith("BAD") else ""


def test_killed_fits_go_on_from_their_last_checkpoint() -> None:
    outcomes = alone(campaign, 3, 5)
    assert [o for o in outcomes if o.faults or "not bitwise" in o.notes] == []


@pytest.mark.slow
def test_many_killed_fits_go_on_from_their_last_checkpoint() -> None:
    outcomes = alone(campaign, 44, 11, wait=900)
    assert [o for o in outcomes if o.faults or "not bitwise" in o.notes] == []


def test_many_events_leave_nothing_behind() -> None:
    first, *_, last = alone(soak, 80, 20)
    assert last.hooks == first.hooks
    assert last.tensors <= first.tensors + 2
    assert last.elements < first.elements
    assert last.objects - first.objects <= 8 * (last.events - first.events)  # the record itself
    assert last.rss - first.rss < 8 << 20
