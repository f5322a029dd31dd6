"""Small networks whose ``forward`` is unusual in what it takes or returns."""

from __future__ import annotations

import itertools

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_taylor import prune_channels, trace_channels


class Segmenter(nn.Module):
    """Two inputs, a dict of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.out, self.aux = nn.Conv2d(9, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        x = F.dropout(F.relu(self.norm(self.stem(image))), 0.5, self.training)
        return {"out": self.out(torch.cat([x, depth], 1)), "aux": self.aux(x)}


class Pair(nn.Module):
    """Its code is written for two examples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(image)).mean((2, 3)).view(2, 6))


class Classes(nn.Module):
    """Whole numbers as output, beside the logits that they come from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.conv(image).mean((2, 3))
        return logits, logits.argmax(1)


class Forgetful(nn.Module):
    """Computes something else at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 3), itertools.count(1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image) * next(self.calls)


class SideBySide(nn.Module):
    """Several networks of the same image, whose outputs have their names."""

    def __init__(self, nets: dict[str, nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {name: net(image) for name, net in self.nets.items()}


class Wrapper(L.LightningModule):
    """A LightningModule around any network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def halved(model: nn.Module, example_inputs: object) -> nn.Module:
    """The model without half of each group's channels."""
    graph = trace_channels(model, example_inputs)
    prune_channels(model, graph, graph.sample(0.5, torch.Generator().manual_seed(0)))
    return model
