"""What is chosen where the user leaves the choice: the multiple of the device, the power of the criterion."""

from __future__ import annotations

from collections import UserList
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import zoo

from fit.boring import Boring
from fit.harness import fit, pruning
from lightning_taylor import Iterative, OneShot, Random, Target, Taylor, TaylorPruning, WeightMagnitude
from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.fit import options
from lightning_taylor.fit.options import Options
from lightning_taylor.plan.feasibility import own_round_to
from lightning_taylor.plan.schedule import Schedule


@pytest.mark.parametrize(("capability", "multiple"), [((9, 0), 8), ((7, 0), 8), ((6, 1), 1)])
def test_tensor_cores_want_multiples_of_eight(capability: tuple[int, int], multiple: int) -> None:
    with mock.patch("torch.cuda.get_device_capability", return_value=capability):
        assert own_round_to(torch.device("cuda")) == multiple
    assert own_round_to(torch.device("cpu")) == 1


@pytest.mark.parametrize(("target", "multiple"), [(0.5, 1), (Target(latency=0.5), 8), (Target(params=0.5), 1)])
def test_a_target_of_latency_wants_multiples_of_what_a_cpu_computes_at_once(target: Any, multiple: int) -> None:
    asked = Options.of(target, Taylor(), None, 0.0, 1, None)
    assert asked.on(torch.device("cpu")).multiple == multiple
    assert replace(asked, round_to=3).on(torch.device("cpu")).multiple == 3


def widths(asked: int | None, folder: Path, target: float = 0.5, schedule: Schedule | None = None) -> list[int]:
    """Of the groups that lost channels in a fit on a device that wants multiples of 4."""
    pruner = pruning(schedule=schedule or OneShot(4), criterion=Random(), target=target, round_to=asked)
    with mock.patch.object(options, "own_round_to", return_value=4):
        fit(Boring(zoo.Residual()), pruner, folder)
    assert pruner.reached
    assert pruner.graph is not None
    dense = pruner.graph.dense_sizes
    return [group.size for name, group in pruner.graph.groups.items() if group.size < dense[name]]


@pytest.mark.parametrize(("asked", "multiple"), [(None, 4), (1, 1), (2, 2)])
def test_a_fit_keeps_the_multiple_of_its_device_unless_it_is_told_another(
    asked: int | None, multiple: int, tmp_path: Path
) -> None:
    found = widths(asked, tmp_path)
    assert found
    assert all(width % multiple == 0 for width in found)
    assert multiple != 1 or any(width % 2 for width in found)


def test_a_target_that_the_devices_multiple_does_not_allow_is_met_with_a_finer_one(tmp_path: Path) -> None:
    found = widths(None, tmp_path, target=0.12)
    assert any(width % 4 for width in found)
    with pytest.raises(TargetUnreachableError, match="round_to"):
        widths(4, tmp_path, target=0.12)


@pytest.mark.slow
def test_a_schedule_of_single_channels_gets_single_channels(tmp_path: Path) -> None:
    one_by_one = Iterative(every_n_steps=1, channels_per_event=1)
    assert any(width % 4 for width in widths(None, tmp_path, target=0.8, schedule=one_by_one))


def test_a_grouped_convolution_loses_one_of_three_things_and_an_attention_one_of_two() -> None:
    assert (TaylorPruning().conv_groups, TaylorPruning().attention_heads) == ("auto", "whole")
    wrong: Any = "halves"
    with pytest.raises(ValueError, match="conv_groups must be one of 'auto', 'whole', 'spread', got 'halves'"):
        TaylorPruning(conv_groups=wrong)
    with pytest.raises(ValueError, match="attention_heads must be one of 'whole', 'spread', got 'halves'"):
        TaylorPruning(attention_heads=wrong)


@pytest.mark.parametrize(
    ("power", "arguments"),
    [
        (1.0, {"target": 0.5}),
        (1.0, {"target": Target(flops=0.5, params=0.5)}),
        (1.0, {"target": Target(params=0.5)}),
        (0.0, {"target": 0.5, "normalization": "l2"}),
        (0.0, {"target": 0.5, "cost_penalty": 1e-3}),
        (0.0, {"target": 0.5, "criterion": Taylor(positions="mean")}),
        (0.0, {"target": 0.5, "criterion": WeightMagnitude()}),
        (0.5, {"target": 0.5, "criterion": Taylor()}),
        (1.0, {"target": Target(memory=0.5), "criterion": Taylor()}),
        (2.0, {"target": Target(memory=0.5, latency=0.5)}),
        (0.7, {"target": Target(memory=0.5), "cost_power": 0.7}),
        (0.0, {"target": 0.5, "cost_power": 0.0}),
        (0.7, {"target": Target(params=0.5), "cost_power": 0.7}),
        (0.7, {"target": 0.5, "flops_power": 0.7}),
        (0.0, {"target": 0.5, "flops_penalty": 1e-3}),
    ],
)
def test_scores_are_weighed_against_prices_as_the_criterion_or_the_user_says(
    power: float, arguments: dict[str, object]
) -> None:
    found: Options = TaylorPruning(**arguments).options  # type: ignore[arg-type]
    assert [found.power(resource) for resource in found.target.asked] == [power] * len(found.target.asked)


def test_the_former_names_of_power_and_penalty_say_the_same() -> None:
    def told(**arguments: float) -> Options:
        return TaylorPruning(**arguments).options  # type: ignore[arg-type]

    assert (told(flops_penalty=1e-3).cost_penalty, told(flops_power=0.7).cost_power) == (1e-3, 0.7)
    for power in (0.5, 0, 0.0):
        with pytest.raises(ValueError, match="flops_power is the former name of cost_power: give one of them"):
            told(flops_power=0.7, cost_power=power)
    with pytest.raises(ValueError, match="flops_penalty is the former name of cost_penalty: give one of them"):
        told(flops_penalty=1e-3, cost_penalty=1e-4)


def test_a_shape_may_come_in_the_list_of_whatever_reads_a_configuration() -> None:
    shape: Any = UserList([2, 3, 8, 8])
    assert TaylorPruning(example_inputs=shape).example_inputs.shape == (2, 3, 8, 8)
    broken: Any = UserList([2, 0])
    with pytest.raises(ValueError, match=r"example_inputs takes what the model's forward takes, .* got \[2, 0\]"):
        TaylorPruning(example_inputs=broken)


def test_no_layer_loses_more_than_its_share_of_what_it_had(tmp_path: Path) -> None:
    pruner = pruning(schedule=Iterative(1, 3), criterion=Random(), target=0.6, max_removed={"one": 0.25})
    fit(Boring(zoo.Residual()), pruner, tmp_path)
    graph = pruner.graph
    assert pruner.reached
    assert graph is not None
    tensor, dim = graph.layers["net.one.0"]
    assert graph.shapes[tensor][dim] >= 0.75 * graph.dense[tensor][dim]


@pytest.mark.parametrize(
    ("max_removed", "message"), [(1.5, "in .0, 1.: 0.9 for all layers"), ({"fc": "half"}, "got {'fc': 'half'}")]
)
def test_a_share_that_is_none_is_refused(max_removed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning(max_removed=max_removed)
