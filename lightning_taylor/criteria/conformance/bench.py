"""A small network with its data, on which a criterion is put to the test, and the calls that a fit would make.

Shape legend: C = channels of a group, M = entries of a tensor dimension that one channel owns.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.trace.api import trace_channels

__all__ = [
    "Batch",
    "Bench",
    "Scores",
    "batches",
    "bench",
    "difference",
    "loss_of",
    "score",
    "train",
]

Batch = tuple[Tensor, Tensor]
"""Images and labels."""

Scores = Mapping[str, Tensor]

EXAMPLES = 8
CLASSES = 3
TOLERANCE = 1e-4
"""Of a difference, relative to the largest score of the group: what two orders of summation may differ by."""


class _Net(nn.Module):
    """A residual block, a flattened map in front of the classifier, and a side branch that no loss needs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.down = nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5 * 4, CLASSES)
        self.side = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = F.relu(x + self.block(x))
        y = F.adaptive_avg_pool2d(F.silu(self.down(x)), 2)
        return self.head(y.flatten(1)), self.side(x.detach())


@dataclass(frozen=True)
class Bench:
    """A network at some widths, its channel graph, and the order of its channels.

    Attributes:
        model: never trained itself; take a ``fresh`` one.
        graph: its channel graph.
        orders: group name -> shape ``(C,)``: which channel of the original stands where; empty if none was moved.
    """

    model: nn.Module
    graph: ChannelGraph
    orders: Mapping[str, Tensor] = field(default_factory=dict)

    def fresh(self) -> nn.Module:
        """Copy the model."""
        return copy.deepcopy(self.model)

    @property
    def learning(self) -> list[str]:
        """Groups that every batch's gradient reaches."""
        return [name for name in self.graph.groups if not name.startswith("side")]

    def permuted(self) -> Bench:
        """Build the same network with the channels of every group in another order."""
        model, generator = self.fresh(), torch.Generator().manual_seed(1)
        orders = {name: torch.randperm(g.size, generator=generator) for name, g in self.graph.groups.items()}
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name, group in self.graph.groups.items():
                for s in group.slices:
                    moved = tensors[s.tensor].index_select(s.dim, s.index[orders[name]].flatten())
                    tensors[s.tensor].index_copy_(s.dim, s.index.flatten(), moved)
        return replace(self, model=model, orders=orders)

    def cut(self, model: nn.Module, channels: Sequence[int]) -> tuple[ChannelGraph, dict[str, Tensor]]:
        """Remove channels from a copy of the model: the same ones, wherever they stand.

        Returns:
            The smaller graph, and what was removed, as a scorer is told.
        """
        remove = {}
        for name in self.learning:
            places = torch.arange(self.graph.groups[name].size)
            order = self.orders.get(name, places)
            remove[name] = places[torch.isin(order, torch.tensor(channels))]
        return prune_channels(model, self.graph, remove), remove

    def narrower(self) -> Bench:
        """Build the bench with fewer channels."""
        model = self.fresh()
        graph, _ = self.cut(model, (0, 2))
        return Bench(model, graph)


@cache
def bench() -> Bench:
    """Build the network and trace it, once."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = _Net()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            fans = max(1, tensor[0].numel())
            tensor.copy_(noise * (2 / fans) ** 0.5 if tensor.ndim > 1 else 0.1 * noise + ("1.weight" in name))
    return Bench(model, trace_channels(model, batches()[0][0]))


@cache
def batches() -> tuple[Batch, ...]:
    """Draw two batches, the same ones every time."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(EXAMPLES) % CLASSES
    return tuple((torch.randn(EXAMPLES, 3, 6, 6, generator=generator), labels.roll(b)) for b in range(2))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Compute the loss of a batch; the side branch has no part in it."""
    x, y = batch
    return F.cross_entropy(model(x)[0], y)


def train(
    model: nn.Module,
    scorer: Scorer,
    batch: Batch,
    *,
    scale: float = 1.0,
    other_pass: bool = False,
    twice: bool = False,
) -> None:
    """Make the calls of one training step, in the order of a fit; the weights stay.

    Args:
        model: gets gradients.
        scorer: on this model.
        batch: what to train on.
        scale: what the loss is multiplied by.
        other_pass: differentiate the loss once more, before its own backward pass.
        twice: evaluate the batch twice, as an optimizer with a closure does.
    """
    model.zero_grad(set_to_none=True)
    scorer.on_batch(batch)
    for factor in (5.0, 1.0) if twice else (1.0,):
        model.zero_grad(set_to_none=True)
        loss = loss_of(model, batch) * factor * scale
        if twice:
            scorer.drop_batch()
        if other_pass:
            torch.autograd.grad(loss * 3, list(model.parameters()), retain_graph=True, allow_unused=True)
        scorer.on_loss(loss)
        scorer.before_backward()
        loss.backward()
        scorer.after_backward()
    scorer.before_step(list(model.parameters()), grad_scale=scale)
    scorer.end_batch(examples=len(batch[0]), grad_scale=scale)
    scorer.sync()


def score(
    criterion: Criterion,
    on: Bench,
    data: Sequence[Batch],
    *,
    event: int = 0,
    scale: float = 1.0,
    other_pass: bool = False,
    twice: bool = False,
) -> dict[str, Tensor]:
    """Score a fresh copy of a bench's model after some batches."""
    model = on.fresh()
    scorer = criterion.scorer(model, on.graph, event=event)
    try:
        for batch in data:
            train(model, scorer, batch, scale=scale, other_pass=other_pass, twice=twice)
        return scorer.scores()
    finally:
        scorer.close()


def difference(one: Scores, other: Scores, *, exact: bool = False) -> str | None:
    """Say in words where two scores differ by more than rounding; None if they agree."""
    if set(one) != set(other):
        return f"groups {sorted(one)} and {sorted(other)}"
    for name, score_C in one.items():
        other_C = other[name]
        if score_C.shape != other_C.shape:
            return f"group {name!r} has shape {tuple(score_C.shape)} and {tuple(other_C.shape)}"
        allowed = 0.0 if exact else TOLERANCE * max(float(score_C.abs().max()), float(other_C.abs().max()))
        if not float((score_C - other_C).abs().max()) <= allowed:
            return f"group {name!r}: {_few(score_C)} and {_few(other_C)}"
    return None


def _few(score_C: Tensor) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in score_C.tolist()[:6]) + "]"
