"""What a grouped convolution loses is the user's choice: whole groups, or the same channels of every group."""

from __future__ import annotations

from typing import Any, get_args

import hypothesis
import pytest
import torch
import torch.nn.functional as F
import torchvision
from exactness import difference, masked, outputs, sliced
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_taylor import trace_channels
from lightning_taylor.modules.model_copy import reveal
from lightning_taylor.trace.options import ConvGroups

CHOICES: tuple[Any, ...] = get_args(ConvGroups)
X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block around a grouped convolution, as in ResNeXt; with ``gated`` as in RegNet Y."""

    def __init__(self, stream: int, groups: int, inputs: int, outputs: int, gated: bool) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(stream, groups * inputs, 1, bias=False), nn.BatchNorm2d(groups * inputs)
        self.b = nn.Conv2d(groups * inputs, groups * outputs, 3, padding=1, groups=groups, bias=not gated)
        self.norm_b, self.c = nn.BatchNorm2d(groups * outputs), nn.Conv2d(groups * outputs, stream, 1)
        self.gate = nn.Sequential(nn.Conv2d(groups * outputs, 3, 1), nn.ReLU(), nn.Conv2d(3, groups * outputs, 1))
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))) if self.gated else y
        return F.relu(x + self.c(y))


blocks = st.tuples(st.integers(2, 6), st.integers(1, 5), st.integers(1, 5), st.booleans()).filter(
    lambda block: block[1] * block[0] > block[0]  # else it is depthwise
)


def network(drawn: list[tuple[int, int, int, bool]]) -> nn.Module:
    torch.manual_seed(0)
    body = [Block(6, *block) for block in drawn]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), *body, *head).double().eval()
    reveal(model, torch.Generator().manual_seed(1))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
@hypothesis.settings(max_examples=12, deadline=None, database=None, derandomize=True)
@hypothesis.given(st.lists(blocks, min_size=1, max_size=2), st.sampled_from([0.5, 0.8]), st.integers(0, 99))
def test_what_goes_is_what_was_chosen_and_what_is_left_is_exact(
    choice: Any, drawn: list[tuple[int, int, int, bool]], share: float, seed: int
) -> None:
    model = network(drawn)
    graph = trace_channels(model, X, conv_groups=choice)
    remove = graph.sample(share, torch.Generator().manual_seed(seed))
    smaller = sliced(model, graph, remove)
    assert difference(outputs(masked(model, graph, remove), X), outputs(smaller, X)) < 1e-10
    for place, (groups, inputs, made, _) in enumerate(drawn, 1):
        conv: Any = smaller[place].b  # type: ignore[index]
        whole = 1 in (inputs, made) or (groups >= inputs if choice == "auto" else choice == "whole")
        # Whoever makes what the convolution reads gives the units their name.
        gone = len(remove[f"{place}.a"])
        assert gone > 0
        assert conv.weight.shape[:2] == (conv.out_channels, conv.in_channels // conv.groups)
        if whole:
            kept = (conv.in_channels // conv.groups, conv.out_channels // conv.groups)
            assert (conv.groups, *kept) == (groups - gone, inputs, made)
        else:
            assert (conv.groups, conv.in_channels) == (groups, groups * (inputs - gone))


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", ["resnext", "regnet_x", "regnet_y"])
def test_networks_as_torchvision_builds_them_are_exact_under_each_choice(name: str, choice: Any) -> None:
    torch.manual_seed(0)
    if name == "resnext":
        block = torchvision.models.resnet.Bottleneck
        model: nn.Module = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4, groups=8, width_per_group=4)
    else:
        params = torchvision.models.regnet.BlockParams([1, 2], [8, 16], [8, 16], [2, 2], [1, 2])
        params.se_ratio = 0.25 if name == "regnet_y" else None
        model = torchvision.models.RegNet(params, num_classes=4, stem_width=8)
    model = model.double().eval()
    reveal(model, torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = trace_channels(model, x, conv_groups=choice)
    assert list(graph.frozen.values()) == ["reaches the output"]
    remove = graph.sample(0.5, torch.Generator().manual_seed(2))
    smaller = sliced(model, graph, remove)
    assert difference(outputs(masked(model, graph, remove), x), outputs(smaller, x)) < 1e-10
    pairs = [
        (one.groups, other.groups, one.in_channels // one.groups, other.in_channels // other.groups)
        for one, other in zip(model.modules(), smaller.modules(), strict=True)
        if isinstance(one, nn.Conv2d) and isinstance(other, nn.Conv2d) and one.groups > 1
    ]
    assert len(pairs) >= 3
    if choice == "whole":
        assert all(after < before and width == left for before, after, width, left in pairs)
    if choice == "spread":
        assert all(after == before and left < width for before, after, width, left in pairs)


def test_a_choice_that_does_not_exist_is_an_error_that_names_those_that_do() -> None:
    wrong: Any = "halves"
    with pytest.raises(ValueError, match="conv_groups must be one of 'auto', 'whole', 'spread', got 'halves'"):
        trace_channels(nn.Conv2d(3, 4, 3), X.float(), conv_groups=wrong)
