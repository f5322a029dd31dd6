"""Whole groups of a GroupNorm go, also where its channels come from several layers that have norms of their own."""

from __future__ import annotations

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from exactness import difference, masked, outputs, sliced
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_taylor import trace_channels
from lightning_taylor.modules.model_copy import reveal

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Joined(nn.Module):
    """Two layers, each with a norm of its own, and one norm over both of them side by side."""

    def __init__(self, each: tuple[int, int], groups: tuple[int, int], over_both: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, each[0], 3), nn.Conv2d(each[0], each[1], 1)
        self.norms = nn.ModuleList(nn.GroupNorm(g, n) for g, n in zip(groups, each, strict=True))
        self.over_both, self.head = nn.GroupNorm(over_both, sum(each)), nn.Linear(sum(each), 3)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        other = self.norms[1](self.other(F.silu(self.norms[0](one))))
        return self.head(F.silu(self.over_both(torch.cat([one, other], 1))).mean((2, 3)))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    each = draw(st.tuples(st.integers(2, 24), st.integers(2, 24)))
    groups = tuple(draw(st.sampled_from(divisors(n))) for n in each)
    torch.manual_seed(0)
    return Joined(each, (groups[0], groups[1]), draw(st.sampled_from(divisors(sum(each)))))


@pytest.mark.slow
@hypothesis.settings(max_examples=25, deadline=None, database=None, derandomize=True)
@hypothesis.given(networks(), st.sampled_from([0.5, 0.9]), st.integers(0, 99))
def test_what_is_left_is_exact_and_no_reason_blames_the_code(net: nn.Module, share: float, seed: int) -> None:
    model = net.double().eval()
    reveal(model, torch.Generator().manual_seed(1))
    graph = trace_channels(model, X)
    assert not any(
        "assumes its width" in reason or "removing its channels" in reason for reason in graph.frozen.values()
    )
    remove = graph.sample(share, torch.Generator().manual_seed(seed))
    if not remove:
        return
    expected, found = outputs(masked(model, graph, remove), X), outputs(sliced(model, graph, remove), X)
    assert difference(expected, found) < 1e-11


def test_groups_that_lie_in_one_of_the_layers_go_and_those_across_both_stay() -> None:
    graph = trace_channels(Joined((16, 8), (8, 1), 8).double(), X)
    group = graph.groups["one"]
    # Groups of three are 0-2, 3-5 ... and those of two 0-1, 2-3 ...: six channels are the least that is whole in both.
    assert [sorted(s.index.tolist()) for s in group.slices if s.tensor == "one.weight"] == [
        [list(range(6)), list(range(6, 12))]
    ]
    assert graph.frozen["one"].startswith("4 of 16 channels")
