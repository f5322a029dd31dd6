"""The proof by trial where a network picks by its numbers: ties mislead it as little as real changes escape it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.trace.api import trace_channels
from lightning_taylor.trace.decisions import DecisionsFollowed, DecisionsNoted

Pick = Callable[[Tensor, Tensor], Tensor]
"""Scores (P,) and boxes (P, 4) -> the boxes that are picked."""


def best_of_each(scores: Tensor, boxes: Tensor) -> Tensor:
    rows = scores.view(8, 16)
    order = rows[:, 0].argsort()
    return boxes.view(8, 16, 4)[order, rows[order].argmax(1)]


def above(scores: Tensor, boxes: Tensor) -> Tensor:
    rows = scores.view(8, 16)
    return boxes[((rows >= rows.amax(1, keepdim=True)) & (rows > rows.mean())).flatten()]


def by_level(scores: Tensor, boxes: Tensor) -> Tensor:
    rows = scores.view(8, 16)
    return boxes + (rows / rows[:, :1]).floor().view(-1, 1) + (30 * scores).round()[:, None]


PICKS: dict[str, Pick] = {
    "sort": lambda scores, boxes: boxes[scores.sort(descending=True).indices],
    "topk": lambda scores, boxes: boxes[scores.topk(20).indices],
    "nms": lambda scores, boxes: boxes[nms(boxes, scores, 0.5)],
    "argmax": best_of_each,
    "mask": above,
    "floor": by_level,
    "branch": lambda scores, boxes: torch.stack([boxes[i] for i in range(40) if scores[i] > scores[i + 1]]),
}


class Excited(nn.Module):
    """Squeeze and excitation, and boxes that are picked by what comes out.

    Each of eight scores is there sixteen times, multiplied and divided by the same number: which of those is largest
    is the rounding's choice, as it is where a detector is given a blank image.
    """

    def __init__(self, pick: Pick, *, averages: bool = False) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 24, 3), nn.Linear(24, 12), nn.Linear(12, 8)
        self.corners = nn.Buffer(4 * torch.rand(8, 16, 2) + 10 * torch.arange(8).view(8, 1, 1))
        self.pick, self.averages = pick, averages

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.squeeze(self.stem(x).relu().mean((2, 3))).relu()
        scores = self.excite(hidden)[0]
        if self.averages:
            scores = scores / hidden.shape[1] - 0.05 * torch.arange(8)
        numbers = torch.arange(3, 35, 2)
        corners = self.corners.flatten(0, 1)
        return self.pick((scores[:, None] * numbers / numbers).flatten(), torch.cat([corners, corners + 24], 1))


def trace(net: nn.Module) -> ChannelGraph:
    return trace_channels(net, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
def test_ties_freeze_nothing(pick: Pick) -> None:
    assert {name: group.size for name, group in trace(Excited(pick)).groups.items()} == {"stem": 24, "squeeze": 12}


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
def test_a_removal_that_shows_in_the_choice_alone_is_refused(pick: Pick) -> None:
    graph = trace(Excited(pick, averages=True))
    assert list(graph.groups) == ["stem"]
    assert "removing its channels changes the" in graph.frozen["squeeze"]


def test_a_choice_is_followed_by_the_same_numbers_only() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    noted = DecisionsNoted()
    with noted:
        first, second = scores.argsort(), scores.argsort()
        second.zero_()  # what is noted is a copy
    with DecisionsFollowed(noted, tolerance=1e-9):
        assert (scores + 1e-12 * torch.tensor([0, 0, 2])).argsort().equal(first)
        assert (-scores).argsort().equal(first.flip(0))


def test_what_is_sorted_stays_the_runs_own_and_its_order_is_followed() -> None:
    one = torch.tensor([1.0, 1.0], dtype=torch.float64)
    other = one + torch.tensor([1e-15, 0.0], dtype=torch.float64)
    noted = DecisionsNoted()
    with noted:
        _, order = one.sort(stable=True)
    with DecisionsFollowed(noted, tolerance=1e-9):
        values, followed = other.sort(stable=True)
    assert followed.equal(order)
    assert values.equal(other.flip(0))
    assert not other.sort(stable=True).indices.equal(order)
