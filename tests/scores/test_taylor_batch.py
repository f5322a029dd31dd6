"""``TaylorBatch`` is the squared derivative of the batch's loss by a gate at the consumers' inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from zoo import NETS

from lightning_taylor.scores import TaylorBatch

from .gates import assert_same, case, contributions, gated_losses, scored, train_batch


@pytest.mark.parametrize("name", NETS)
def test_scores_equal_the_squared_gate_of_the_batch(name: str) -> None:
    model, graph, x = case(name)
    expected = {group: contributions(model, graph, group, x).mean(0).square() for group in graph.groups}
    if name == "auxiliary":
        del expected["side"]
    assert_same(scored(TaylorBatch(), model, graph, x), expected, rtol=1e-5)


def test_scores_equal_a_finite_difference_of_the_gate() -> None:
    model, graph, x = case("residual")
    found = scored(TaylorBatch(), model, graph, x)
    eps = 1e-4

    def loss(group: str, channel: int, gate: float) -> Tensor:
        gate_C = torch.ones(graph.groups[group].size, dtype=torch.float64)
        gate_C[channel] = gate
        return gated_losses(model, graph, group, gate_C, x).mean().detach()

    expected = {
        name: torch.stack(
            [((loss(name, c, 1 + eps) - loss(name, c, 1 - eps)) / (2 * eps)) ** 2 for c in range(group.size)]
        )
        for name, group in graph.groups.items()
    }
    assert_same(found, expected, rtol=1e-4)


def test_steps_are_averaged() -> None:
    model, graph, x = case("concat", examples=4)
    one, other = (scored(TaylorBatch(), model, graph, part) for part in (x[:2], x[2:]))
    both = scored(TaylorBatch(), model, graph, x[:2], x[2:])
    assert_same(both, {name: (one[name] + other[name]) / 2 for name in one})


def test_a_step_that_is_not_finite_is_dropped() -> None:
    model, graph, x = case("vgg")
    broken = x.clone()
    broken[0, 0, 0, 0] = float("inf")
    assert_same(scored(TaylorBatch(), model, graph, broken, x), scored(TaylorBatch(), model, graph, x))


def test_a_frozen_consumer_takes_its_group_out() -> None:
    model, graph, x = case("residual")
    everything = scored(TaylorBatch(), model, graph, x)
    model.project.requires_grad_(False)
    assert set(everything) - set(scored(TaylorBatch(), model, graph, x)) == {"stem.0"}


def test_a_step_without_gradients_counts_for_nothing() -> None:
    model, graph, x = case("vgg")
    scorer = TaylorBatch().watch(model, graph)
    scorer.before_step()
    assert scorer.scores() == {}
    train_batch(model, scorer, x)
    assert_same(scorer.scores(), scored(TaylorBatch(), model, graph, x))
