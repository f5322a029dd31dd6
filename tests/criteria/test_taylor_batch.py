"""``TaylorBatch`` is the squared derivative of the batch's loss by a gate at the consumers' inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scores.gates import assert_same, case, contributions, gated_losses, scored, train_batch
from torch import Tensor, nn
from zoo import NETS

from lightning_taylor.criteria.base import Scorer
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.graph.types import Role
from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.trace.api import trace_channels


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


class TiedCode(nn.Module):
    """An autoencoder whose decoder is the encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.hidden, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x).relu()
        return self.last(F.linear(self.hidden(code).relu() + code, self.encoder.weight.t()))


def test_a_weight_that_makes_and_reads_the_same_channels_takes_its_group_out() -> None:
    """Its one gradient is the sum of both uses, and tells nothing of the reader's."""
    model, x = TiedCode(), torch.rand(4, 6)
    graph = trace_channels(model, x)
    tied = [
        n
        for n, g in graph.groups.items()
        if {s.axis for s in g.of(Role.PRODUCER)} & {s.axis for s in g.of(Role.CONSUMER)}
    ]
    assert tied
    scorer = TaylorBatch().scorer(model, graph)
    assert set(scorer.unscorable) == set(tied)
    assert all("'encoder.weight', which makes its channels, too" in why for why in scorer.unscorable.values())


def test_a_step_without_gradients_counts_for_nothing() -> None:
    model, graph, x = case("vgg")
    scorer = TaylorBatch().scorer(model, graph)
    scorer.before_step()
    assert scorer.scores() == {}
    train_batch(model, scorer, x)
    assert_same(scorer.scores(), scored(TaylorBatch(), model, graph, x))


def after_an_event(momentum: float | None, steps: int = 1) -> tuple[Scorer, dict[str, Tensor], dict[str, Tensor]]:
    """A scorer after one event; what the survivors had at the event; what they have since, by themselves."""
    model, graph, x = case("residual")
    before = TaylorBatch(momentum).scorer(model, graph)
    train_batch(model, before, x)
    before.close()
    remove = {"stem.0": torch.tensor([1, 5]), "two.0": torch.tensor([0])}
    stays = {
        name: torch.tensor([c for c in range(group.size) if c not in remove.get(name, torch.zeros(0)).tolist()])
        for name, group in graph.groups.items()
    }
    past = {name: score_C[stays[name]] for name, score_C in before.scores().items()}
    smaller = prune_channels(model, graph, remove)
    after = TaylorBatch(momentum).scorer(model, smaller)
    after.carry_over(before, remove)
    for _ in range(steps):
        train_batch(model, after, 2 * x)
    after.close()
    return after, past, scored(TaylorBatch(), model, smaller, 2 * x)


def test_with_momentum_the_survivors_remember_what_they_had_at_the_event() -> None:
    scorer, past, present = after_an_event(momentum=0.75)
    assert_same(scorer.scores(), {name: 0.75 * past[name] + 0.25 * present[name] for name in present})


@pytest.mark.parametrize("steps", [1, 7])
def test_by_default_the_past_fades_with_the_steps_since_the_event(steps: int) -> None:
    scorer, past, present = after_an_event(momentum=None, steps=steps)
    kept = 0.98**steps
    assert_same(scorer.scores(), {name: kept * past[name] + (1 - kept) * present[name] for name in present})


def test_without_momentum_the_scores_begin_anew() -> None:
    scorer, _, present = after_an_event(momentum=0.0)
    assert_same(scorer.scores(), present)
    assert not any(key.startswith("history") for key in scorer.state())


def test_the_memory_is_in_the_state() -> None:
    scorer, _, _ = after_an_event(momentum=0.75)
    model, graph, _ = case("residual")
    smaller = prune_channels(model, graph, {"stem.0": [1, 5], "two.0": [0]})
    resumed = TaylorBatch(0.75).scorer(model, smaller)
    resumed.load_state(scorer.state())
    assert all(torch.equal(resumed.scores()[name], score_C) for name, score_C in scorer.scores().items())
    dense = TaylorBatch(0.75).scorer(*case("residual")[:2])
    with pytest.raises(ValueError, match=r"remembered scores of group 'stem\.0' are 6, and it has 8 channels"):
        dense.load_state(scorer.state())


@pytest.mark.parametrize("momentum", [1.0, -0.1, True, "0.9"])
def test_a_wrong_momentum_is_named(momentum: object) -> None:
    with pytest.raises(ValueError, match="momentum must be a number"):
        TaylorBatch(momentum=momentum)  # type: ignore[arg-type]
