"""The training path and the evaluation path are both proven, and the second one is not paid for more than it tells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_taylor import trace_channels

X = torch.randn(1, 3, 8, 8)


class Counting(nn.Module):
    """Counts its passes; a subclass does something of its own in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.passes = {True: 0, False: 0}

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        self.passes[self.training] += 1
        return self.head(self.between(self.conv(x)))


class Fixed(Counting):
    """A width written out in the training path, which computes the same."""

    def between(self, x: Tensor) -> Tensor:
        return x.view(len(x), 8, 6, 6) if self.training else x


class Noisy(Counting):
    """Another function in training."""

    def between(self, x: Tensor) -> Tensor:
        return 2 * x if self.training else x


def passes(net: Counting) -> dict[bool, int]:
    """Of the copy that was traced."""
    shared = net.passes
    net.__class__ = type("Shared", (type(net),), {"__deepcopy__": lambda self, memo: _copy(self, shared)})
    trace_channels(net, X)
    return shared


def _copy(net: Counting, shared: dict[bool, int]) -> Counting:
    twin = type(net).__mro__[1]()
    twin.load_state_dict(net.state_dict())
    twin.passes = shared
    return twin


def test_a_width_that_only_training_assumes_is_found_although_both_paths_give_the_same_numbers() -> None:
    graph = trace_channels(Fixed(), X)
    assert not graph.groups
    assert "assumes its width" in graph.frozen["conv"]


def test_paths_that_give_the_same_numbers_are_both_tried_once_and_then_one_of_them() -> None:
    alike, unlike = passes(Counting()), passes(Noisy())
    assert alike[False] == unlike[False]
    assert unlike[True] == unlike[False]
    assert alike[True] < unlike[True]
    assert alike[True] >= 4  # the check of the precision, the trace, the whole net and the first draw
