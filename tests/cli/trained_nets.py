"""LightningModules that a command line names by their import path."""

from __future__ import annotations

import lightning as L
import torch
import torchvision
from torch import Tensor, nn


class Fire(L.LightningModule):
    """A network of torchvision, and the inputs that it takes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torchvision.models.squeezenet1_1(num_classes=classes)
        self.example_input_array = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


class Normalised(Fire):
    """Does something with the image first."""

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image - 0.5)


class Forwardless(L.LightningModule):
    """Remembers no argument, and has no forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3))


class Around(L.LightningModule):
    """Calls the network that it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)
