"""Nets of the zoo that keep the widths by which their code takes channels apart as attributes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Listed(nn.Module):
    """MixNet: a list of sizes, a depthwise convolution of its own for each part."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.stem, self.head = [5, 3, 4], nn.Conv2d(3, 12, 3), nn.Linear(12, 3)
        self.parts = nn.ModuleList(
            nn.Conv2d(n, n, k, padding=k // 2, groups=n) for n, k in zip(self.sizes, (1, 3, 5), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.parts, self.stem(x).split(self.sizes, dim=1), strict=True)
        return self.head(F.relu(torch.cat([part(p) for part, p in parts], 1)).mean((2, 3)))


class Rest(nn.Module):
    """InceptionNeXt: a tuple of sizes; what no layer works on is the rest of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.stem, self.deep = (7, 3), nn.Conv2d(3, 10, 3), nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.body, self.head = nn.Conv2d(10, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = self.stem(x).split(self.sizes, dim=1)
        return self.head(F.relu(self.body(torch.cat([passed, self.deep(worked)], 1))).mean((2, 3)))


class Sliced(nn.Module):
    """FasterNet: the first channels are convolved, the others pass; another number is as large by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.worked = 3, 3
        self.stem, self.partial, self.head = nn.Conv2d(3, 10, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + torch.cat([self.partial(x[:, : self.worked]), x[:, self.worked :]], 1)
        return self.head(F.relu(x).mean((2, 3)))


class Halved(nn.Module):
    """CSPNet: a split by half of a number that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.expanded, self.stem, self.work = 8, nn.Conv2d(3, 8, 3), nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = F.relu(self.stem(x)).split(self.expanded // 2, dim=1)
        return self.head(F.relu(torch.cat([passed, self.work(worked)], 1)).mean((2, 3)))


class Spelled(nn.Module):
    """ViT: a view that spells the width out."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.stem, self.head = 8, nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(x.reshape(x.shape[0], self.hidden, x.shape[2] * x.shape[3]).mean(2))


SIZES: dict[str, Callable[[], nn.Module]] = {
    "listed": Listed,
    "rest": Rest,
    "sliced": Sliced,
    "halved": Halved,
    "spelled": Spelled,
}
