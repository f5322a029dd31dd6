"""The proof by trial looks at what every layer reads, so that nothing hides on the way to the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_taylor.trace.api import trace_channels


class Gated(nn.Module):
    """A branch that counts its width, behind a gate that is closed when training begins."""

    def __init__(self, gate: Callable[[], nn.Parameter]) -> None:
        super().__init__()
        self.stem, self.branch, self.back, self.head = (nn.Linear(12, n) for n in (12, 12, 12, 3))
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        h = self.branch(x).relu()
        return self.head(x + self.gate * self.back(h / h.shape[-1]))


class Attenuated(nn.Module):
    """Many layers without norms, each of which counts its width."""

    def __init__(self, layers: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(10, 10) for _ in range(layers))
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu() * (1 / math.sqrt(x.shape[1]))
        return self.head(x)


class KnowsItsBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.made, self.read = nn.Conv1d(3, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.made(x).relu().mean(2).view(5, -1))


@pytest.mark.parametrize(
    "gate", [lambda: nn.Parameter(torch.zeros(())), lambda: nn.Parameter(torch.zeros(12))], ids=["scalar", "vector"]
)
def test_a_closed_gate_hides_nothing(gate: Callable[[], nn.Parameter]) -> None:
    graph = trace_channels(Gated(gate).double(), torch.randn(2, 12, dtype=torch.float64))
    assert "branch" not in graph.groups
    assert "removing its channels changes" in graph.frozen["branch"]


def test_layers_without_norms_hide_nothing() -> None:
    graph = trace_channels(Attenuated().double(), torch.randn(2, 10, dtype=torch.float64))
    assert list(graph.groups) == ["layers.15"]  # the last one counts the width before it, and none counts its own
    assert "reads by" in graph.frozen["layers.3"]


class Vanishing(nn.Module):
    """Over the last channel that is left the first norm gives zeros, so that the next one normalises rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3), nn.LayerNorm(8, bias=False)
        self.up, self.down = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(1, 8) for _ in range(2))
        for norm in self.norms:
            norm.register_parameter("bias", None)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).movedim(1, -1)).movedim(-1, 1)
        x = x + self.down(self.up(self.norms[0](x)).relu() + 1 / 3)
        return self.head(self.norms[1](F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))


def test_the_rounding_of_what_vanishes_holds_nothing() -> None:
    graph = trace_channels(Vanishing(), torch.randn(2, 3, 9, 9), allow_inexact_norms=True)
    assert list(graph.groups) == ["stem", "up"]
    assert list(graph.frozen) == ["head"]


def test_code_that_knows_its_batch_is_traced_with_all_of_it() -> None:
    graph = trace_channels(KnowsItsBatch(), torch.randn(5, 3, 9))
    assert {name: group.size for name, group in graph.groups.items()} == {"made": 6}


class Averaged(nn.Module):
    """A codebook that a training pass goes on averaging, without a gradient and behind autograd's back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = nn.Linear(6, 4), nn.Linear(4, 8), nn.Linear(8, 3)
        self.codes = nn.Parameter(torch.randn(5, 4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        chosen = torch.cdist(z, self.codes).argmin(1)
        quantised = z + (self.codes[chosen] - z).detach()
        if self.training:
            self.codes.data[chosen] = 0.5 * self.codes.data[chosen] + 0.5 * z.detach()
        return self.head(self.decoder(quantised).relu())


def test_what_a_training_pass_writes_into_a_parameter_is_given_back() -> None:
    assert "decoder" in trace_channels(Averaged(), torch.randn(3, 6)).groups
