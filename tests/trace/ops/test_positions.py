"""Operators that rearrange, transform or sample positions: the channels beside them go, and what is left is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import difference, masked, outputs, sliced
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from lightning_taylor import TaylorBatch, trace_channels
from lightning_taylor.graph.types import Role
from lightning_taylor.modules.model_copy import reveal

X = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A convolution, what is under test, another convolution."""

    def __init__(self, work: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 6, 3, 1, 1), nn.Conv2d(6, 2, 1)
        self.work = work
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(self.work(self, F.relu(self.first(x))))))


def unpooled(net: Any, x: Tensor) -> Tensor:
    small, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(net.inner(small), places, 2)


def folded(net: Any, x: Tensor) -> Tensor:
    return F.fold(F.unfold(x, 3, stride=3) * 0.5, x.shape[-2:], 3, stride=3)


def folded_from_a_layer(net: Any, x: Tensor) -> Tensor:
    return F.fold(net.inner(x[:, :, ::2, ::2]).flatten(2), x.shape[-2:], 2, stride=2)


def filtered(net: Any, x: Tensor) -> Tensor:
    waves = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(waves * 0.5, s=x.shape[-2:], norm="ortho")


def amplitudes(net: Any, x: Tensor) -> Tensor:
    return torch.fft.fftn(x, dim=(2, 3)).abs()


def fourier_unit(net: Any, x: Tensor) -> Tensor:
    """Real and imaginary parts side by side, as channels of a convolution: LaMa's fast Fourier convolution."""
    waves = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
    parts = torch.stack((waves.real, waves.imag), dim=-1).permute(0, 1, 4, 2, 3).contiguous()
    parts = F.relu(net.inner(parts.view(len(x), -1, *parts.shape[3:])))
    parts = parts.view(len(x), -1, 2, *parts.shape[2:]).permute(0, 1, 3, 4, 2).contiguous()
    waves = torch.complex(parts[..., 0], parts[..., 1])
    return torch.fft.irfftn(waves, s=x.shape[-2:], dim=(-2, -1), norm="ortho")


def viewed(net: Any, x: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.unflatten(3, (-1, 2)))).flatten(3)


def deformed(net: Any, x: Tensor) -> Tensor:
    return net.inner(x, net.offset(x))


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "unpooled": (lambda: Between(unpooled, inner=nn.Conv2d(8, 8, 3, 1, 1)), {"first": 8, "last": 6}),
    "folded": (lambda: Between(folded), {"first": 8, "last": 6}),
    "folded from a layer": (
        lambda: Between(folded_from_a_layer, inner=nn.Conv2d(8, 32, 1)),
        {"first": 8, "inner": 8, "last": 6},
    ),
    "filtered": (lambda: Between(filtered), {"first": 8, "last": 6}),
    "amplitudes": (lambda: Between(amplitudes), {"first": 8, "last": 6}),
    "Fourier unit": (
        lambda: Between(fourier_unit, inner=nn.Conv2d(16, 16, 1)),
        {"first": 8, "inner": 8, "last": 6},
    ),
    "viewed": (lambda: Between(viewed), {"first": 8, "last": 6}),
    "deformed": (
        lambda: Between(deformed, inner=DeformConv2d(8, 8, 3, padding=1), offset=nn.Conv2d(8, 18, 3, 1, 1)),
        {"first": 8, "inner": 8, "last": 6},
    ),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = CASES[name][0]().double().eval()
    reveal(model, torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("name", CASES)
def test_channels_beside_the_operator_go_and_the_rest_is_exact(name: str) -> None:
    model = built(name)
    graph = trace_channels(model, X)
    assert {group: len(graph.groups[group].slices[0].index) for group in graph.groups} == CASES[name][1]
    remove = graph.sample(0.6, torch.Generator().manual_seed(0))
    expected, found = outputs(masked(model, graph, remove), X), outputs(sliced(model, graph, remove), X)
    assert difference(expected, found) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_their_scores_are_what_a_gate_at_the_readers_would_get(name: str) -> None:
    model = built(name)
    graph = trace_channels(model, X)
    scorer = TaylorBatch().scorer(model, graph)
    model(X).square().mean().backward()
    scorer.before_step(model.parameters())
    parameters = dict(model.named_parameters())
    for group in graph.groups.values():
        gate_C = torch.ones(group.size, dtype=torch.float64, requires_grad=True)
        gated = dict[str, Tensor]()
        for s in group.of(Role.CONSUMER):
            weight = parameters[s.tensor].detach()
            along = torch.ones(weight.shape[s.dim], dtype=torch.float64)
            along = along.index_put((s.index.flatten(),), gate_C.repeat_interleave(s.index.shape[1]))
            gated[s.tensor] = weight * along.view([-1 if d == s.dim else 1 for d in range(weight.ndim)])
        change = torch.func.functional_call(model, gated, (X,)).square().mean()
        (expected_C,) = torch.autograd.grad(change, gate_C)
        torch.testing.assert_close(scorer.scores()[group.name].double(), expected_C.square())


def test_a_deformable_convolution_costs_what_a_plain_one_does() -> None:
    model = built("deformed")
    flops = {op.module: op.flops for op in trace_channels(model, X).operations}
    assert flops["inner"] == 2 * 8 * 8 * 9 * 12 * 12


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": F.mse_loss,
    "smooth": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "margin": F.soft_margin_loss,
    "logits": F.binary_cross_entropy_with_logits,
    "many labels": lambda x, y: F.multilabel_soft_margin_loss(x.flatten(1), y.flatten(1)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_averages_over_stays_and_the_reason_says_so(name: str) -> None:
    class Compared(Between):
        def forward(self, x: Tensor) -> Tensor:
            return LOSSES[name](super().forward(x), torch.ones_like(x[:, :2]))

    graph = trace_channels(Compared(lambda net, x: x).double(), X)
    assert graph.frozen["head"].startswith("reduced over the channels by")
    assert graph.groups.keys() == {"first", "last"}


def test_a_loss_that_is_not_averaged_is_one_of_each_element() -> None:
    class Weighted(Between):
        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.first(x))
            return self.head(self.last(F.mse_loss(hidden, torch.zeros_like(hidden), reduction="none")))

    assert "first" in trace_channels(Weighted(lambda net, x: x).double(), X).groups
