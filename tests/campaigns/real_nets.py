"""Networks at their real size, each with what its fit reads, what its loss is, and the kinds of units that should go.

The counters say how many units of a kind a network has; before and after a fit, they say what went.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from lightning_taylor import Criterion, Taylor, TaylorBatch

CLASSES = 10
Counter = Callable[[nn.Module], int]
"""How many units of one kind a network has."""


@dataclass(frozen=True)
class Case:
    """One network and its fit.

    Attributes:
        build: the network, with random weights.
        units: kind of unit -> how many there are.
        shape: of one example.
        batch: examples per step.
        loss: of the network on a batch of inputs and classes.
        target: the share of the FLOPs that may remain.
        criterion: makes the one that scores.
        options: further arguments of ``TaylorPruning``.
    """

    build: Callable[[], nn.Module]
    units: Mapping[str, Counter]
    shape: tuple[int, ...] = (3, 64, 64)
    batch: int = 4
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = lambda net, x, y: F.cross_entropy(net(x), y)
    target: float = 0.6
    criterion: Callable[[], Criterion] = Taylor
    options: Mapping[str, Any] = field(default_factory=dict)


def widths(pattern: str) -> Counter:
    """The outputs of all layers whose whole name a regular expression matches."""
    own = ("out_channels", "out_features", "hidden_size")
    return lambda net: sum(
        next((getattr(m, name) for name in own if hasattr(m, name)), 0)
        for name, m in net.named_modules()
        if re.fullmatch(pattern, name) and not any(m.children())
    )


def counted(attribute: str, pattern: str) -> Counter:
    """An attribute that counts units, summed over all modules whose whole name a regular expression matches."""
    return lambda net: sum(getattr(m, attribute) for name, m in net.named_modules() if re.fullmatch(pattern, name))


class Twice(nn.Sequential):
    """Two convolutions with batch norm, as every level of a U-Net has them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Transposed convolutions on the way up, skips that are concatenated, a class for every pixel."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(Twice, (3, *sizes), sizes))
        turned = sizes[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairwise(turned))
        self.fuse = nn.ModuleList(Twice(2 * size, size) for size in turned[1:])
        self.head = nn.Conv2d(sizes[0], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            skips.append(x := level(F.max_pool2d(x, 2) if skips else x))
        for up, fuse, skip in zip(self.up, self.fuse, skips[-2::-1], strict=True):
            x = fuse(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Recurrent(nn.Module):
    """Frames through convolutions, their features through two layers of an LSTM."""

    def __init__(self, sizes: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        pairs = pairwise((3, *sizes))
        self.conv = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs)
        )
        self.lstm = nn.LSTM(sizes[-1], hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.conv(x.flatten(0, 1)).mean((2, 3))
        return self.head(self.lstm(frames.unflatten(0, x.shape[:2]))[0][:, -1])


def segmented(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Every pixel of an image has its class."""
    return F.cross_entropy(net(x), y[:, None, None].expand(-1, *x.shape[2:]))


def detected(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Two boxes in each image; the losses are the detector's own."""
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 24.0, 60.0, 60.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 1 + int(label) % (CLASSES - 1)])} for label in y]
    return sum(net(list(x), targets).values(), torch.zeros(()))


def named(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A network of torchvision, as its builder makes it, with random weights."""
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


FASTER_RCNN = {
    "backbone": widths(r"backbone\.body\..*"),
    "pyramid": widths(r"backbone\.fpn\..*"),
    "proposals": widths(r"rpn\.head\.conv.*"),
    "box head": widths(r"roi_heads\.box_head\.fc."),
}

CASES: dict[str, Case] = {
    "resnext50_32x4d": Case(
        named("resnext50_32x4d"),
        {"conv groups": counted("groups", r"layer.*\.conv2"), "streams": widths(r"conv1|layer.\.0\.downsample\.0")},
    ),
    "shufflenet_v2_x1_0": Case(
        named("shufflenet_v2_x1_0"),
        {"branches": widths(r"stage.*\.branch..*"), "last convolution": widths(r"conv5\.0")},
    ),
    "vit_b_16": Case(
        named("vit_b_16"),
        {"heads": counted("num_heads", r".*\.self_attention"), "MLP": widths(r".*\.mlp\.0")},
        shape=(3, 224, 224),
        batch=2,
    ),
    "vit_b_16, thinner heads": Case(
        named("vit_b_16"),
        {"width of heads": counted("head_dim", r".*\.self_attention"), "MLP": widths(r".*\.mlp\.0")},
        shape=(3, 224, 224),
        batch=2,
        options={"attention_heads": "spread"},
    ),
    "swin_v2_t, thinner heads": Case(
        named("swin_v2_t"),
        {"heads": widths(r".*\.attn\.qkv"), "MLP": widths(r".*\.mlp\.0")},
        options={"attention_heads": "spread"},
    ),
    "swin_t": Case(named("swin_t"), {"heads": counted("num_heads", r".*\.attn"), "MLP": widths(r".*\.mlp\.0")}),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Case(
        named("fasterrcnn_mobilenet_v3_large_320_fpn", weights_backbone=None),
        FASTER_RCNN,
        shape=(3, 96, 96),
        batch=2,
        loss=detected,
    ),
    "U-Net 64-128-256-512": Case(
        lambda: UNet(64, 128, 256, 512),
        {"down": widths(r"down\..*"), "up": widths(r"up\..*"), "fuse": widths(r"fuse\..*")},
        batch=2,
        loss=segmented,
    ),
    "convolutions and LSTM 256": Case(
        lambda: Recurrent((64, 128, 256), 256),
        {"convolutions": widths(r"conv\..*"), "hidden units": widths("lstm")},
        shape=(8, 3, 32, 32),
        criterion=TaylorBatch,
        options={"normalization": "l2"},
    ),
    "convnext_tiny": Case(
        named("convnext_tiny"),
        {"streams": widths(r"features\.(0\.0|[246]\.1)"), "MLP": widths(r".*\.block\.3")},
        options={"allow_inexact_norms": True, "normalization": "l2"},
    ),
    "maxvit_t": Case(
        named("maxvit_t", input_size=(224, 224)),
        {
            "heads": counted("n_heads", r".*\.attn_layer\.1"),
            "MLP": widths(r".*\.mlp_layer\.1"),
            "MBConv": widths(r".*\.layers\.conv_a\.0"),
        },
        shape=(3, 224, 224),
        batch=2,
    ),
}
