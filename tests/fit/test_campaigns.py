"""Short versions of the campaigns in ``tests/campaigns``; those that take long are marked slow."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from campaigns import (
    bad_arguments,
    bad_checkpoints,
    bad_fits,
    bad_models,
    bad_removals,
    end_to_end,
    random_modules,
    real_nets,
)
from campaigns.bad_inputs import CASES, judge
from campaigns.cases import Case
from campaigns.kill import METHODS, PLACES, campaign
from campaigns.killed_kinds import CONFIGS
from campaigns.real_nets import Case as Network
from campaigns.soak import soak
from torch import Tensor, nn

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


class Wild(nn.Linear):
    """A layer that learns from another thing each time, whatever the random numbers are."""

    called = 0

    def forward(self, x: Tensor) -> Tensor:
        Wild.called += torch.is_grad_enabled()
        return super().forward(x) * (1 + Wild.called)


SMALL = {
    "U-Net": replace(real_nets.CASES["U-Net 64-128-256-512"], build=lambda: real_nets.UNet(4, 6, 8), shape=(3, 16, 16)),
    "LSTM": replace(
        real_nets.CASES["convolutions and LSTM 256"],
        build=lambda: real_nets.Recurrent((48, 64), 96),
        shape=(3, 3, 8, 8),
    ),
    "ViT": replace(
        real_nets.CASES["vit_b_16"],
        build=lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=real_nets.CLASSES),
        shape=(3, 32, 32),
    ),
}


def _wild() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), Wild(16, real_nets.CLASSES))


def _measured(name: str) -> dict[str, Any]:
    wild = Network(_wild, {"units": real_nets.widths("1")}, shape=(3, 4, 4))
    return end_to_end.measured(name, SMALL.get(name, wild), timeout=300, memory=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_whole_fit_ends_as_one_that_was_interrupted_and_every_kind_of_unit_goes(name: str) -> None:
    row = end_to_end.Row(**alone(_measured, name))
    assert (row.status, row.note, row.resumed, row.differing) == ("right", "", True, [])
    assert row.events == end_to_end.EVENTS
    assert 0 < row.pruned <= 0.6 * row.dense
    assert all(0 < now < before for before, now in row.units.values()), row.units
    assert row.trace_seconds > 0


@pytest.mark.slow
def test_a_whole_fit_that_does_not_resume_as_it_was_is_called_wrong() -> None:
    row = end_to_end.Row(**alone(_measured, "wild"))
    assert row.status == "wrong"
    assert "differ after the resume: .model.net" in row.note


def test_a_whole_fit_that_dies_or_hangs_is_a_row_that_says_so() -> None:
    def hang() -> nn.Module:
        time.sleep(60)
        raise AssertionError

    def die() -> nn.Module:
        os._exit(3)

    stuck = end_to_end.measured("stuck", Network(hang, {"units": real_nets.widths("1")}), timeout=1, memory=8)
    dead = end_to_end.measured("dead", Network(die, {"units": real_nets.widths("1")}), timeout=60, memory=8)
    assert (stuck["status"], dead["status"]) == ("timeout", "error")


def test_the_table_of_whole_fits_says_what_went_and_what_went_wrong() -> None:
    units = {"heads": [12, 8], "MLP": [64, 64]}
    right = end_to_end.Row("swin_t", "right", dense=2_000_000, pruned=1_200_000, share=0.6, resumed=True, units=units)
    wrong = end_to_end.Row("vit_b_16", "wrong", "2 differ", resumed=True, differing=[".model.a", ".model.b"])
    table = end_to_end.markdown([right, wrong], "Made.")
    assert "1 of 2 right, 1 resumed bit for bit." in table
    assert "heads 12 → 8, MLP 64 → 64 (stayed)" in table
    assert "- **vit_b_16** (wrong): 2 differ" in table


def test_the_networks_of_the_whole_fits_have_the_units_that_they_are_asked_for() -> None:
    for name in ("resnext50_32x4d", "shufflenet_v2_x1_0", "swin_t"):
        with torch.device("meta"):
            net = real_nets.CASES[name].build()
        assert all(count(net) > 0 for count in real_nets.CASES[name].units.values()), name


@pytest.mark.slow
def test_killed_fits_go_on_from_their_last_checkpoint() -> None:
    outcomes = alone(campaign, 3, 5)
    assert [o for o in outcomes if o.faults or "not bitwise" in o.notes] == []


@pytest.mark.slow
def test_killed_fits_of_every_configuration_go_on_from_their_last_checkpoint() -> None:
    outcomes = alone(campaign, len(CONFIGS) + 1, 11, wait=900)
    assert [o for o in outcomes if o.faults or "not bitwise" in o.notes] == []
    assert {o.config for o in outcomes} == set(CONFIGS)
    assert {o.strike.where for o in outcomes} == set(PLACES)
    assert {o.strike.how for o in outcomes} == {*METHODS, "full disk"}


@pytest.mark.slow
def test_many_events_leave_nothing_behind() -> None:
    first, *_, last = alone(soak, 80, 20)
    assert last.hooks == first.hooks
    assert last.tensors <= first.tensors + 2
    assert last.elements < first.elements
    assert last.objects - first.objects <= 8 * (last.events - first.events)  # the record itself
    assert last.rss - first.rss < 8 << 20


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_random_modules_are_scored_cut_and_resumed_as_their_plain_twins(seed: int) -> None:
    found = random_modules.verdict(seed, campaign=1)
    assert found["status"] in ("right", "refused"), found
