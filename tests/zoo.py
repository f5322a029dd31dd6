"""One table of models that goes through every suite: name -> (how to build it, what it takes).

``NETS`` are small and cover one structure each; ``TORCHVISION`` are the real architectures. All have random weights,
random batch-norm statistics and affines: they prove shapes and exactness, never accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from zoo_grids import GRIDS
from zoo_sizes import SIZES

Case = tuple[Callable[[], nn.Module], Callable[[], Tensor]]


def conv(i: int, o: int, k: int = 3, **kwargs: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **kwargs)  # type: ignore[arg-type]


class Residual(nn.Module):
    """A stem, two residual blocks (one with a projection), pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Sequential(conv(8, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 8), nn.BatchNorm2d(8))
        self.two = nn.Sequential(conv(8, 10, stride=2), nn.BatchNorm2d(10), nn.ReLU(inplace=True), conv(10, 12))
        self.project = nn.Conv2d(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        x = F.relu(self.project(x) + self.two(x))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Dense connectivity: features are concatenated, then normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 6), conv(6, 4), conv(10, 5)
        self.norm = nn.BatchNorm2d(10)
        self.head = nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        ab = torch.cat([a, self.b(a)], 1)
        c = self.c(F.relu(self.norm(ab)))
        return self.head(torch.cat([ab, c], 1).amax((2, 3)))


class Inverted(nn.Module):
    """MobileNet: expand, depthwise, squeeze-and-excitation, project, add; a depthwise multiplier of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Hardswish(inplace=True))
        self.depthwise = nn.Sequential(conv(16, 16, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
        self.doubled = conv(8, 16, groups=8)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y)
        return self.head(self.doubled(F.relu(x)).mean((2, 3)))


class OptionA(nn.Module):
    """A shortcut without parameters: strided, padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 16, stride=2), conv(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.relu(self.b(F.relu(self.a(x))) + short).mean((2, 3)))


class Bare(nn.Module):
    """Parameters used bare: layer scale, a position embedding, and a table of channels as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.out = conv(3, 8), conv(8, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.position = nn.Parameter(torch.randn(1, 8, 6, 6))
        self.register_buffer("shift", torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        x = x + self.scale * self.mix(F.gelu(x)) + self.shift
        return self.out(F.relu(x).mean((2, 3)))


class Shared(nn.Module):
    """A convolution called twice, tied weights, a functional linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = conv(3, 8), conv(8, 8)
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight
        self.matrix = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.twice(F.relu(self.twice(F.relu(x)))).mean((2, 3))
        return F.linear(self.other(F.relu(self.one(x))), self.matrix)


class Halves(nn.Module):
    """A gated linear unit: the two halves of a convolution meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gated, self.head = conv(3, 6), conv(6, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.gated(F.relu(self.stem(x))).chunk(2, dim=1)
        return self.head((a * torch.sigmoid(b)).mean((2, 3)))


class Auxiliary(nn.Module):
    """A head that only training runs, reading a branch that evaluation does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 3)
        self.side, self.side_head = conv(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        x = F.relu(self.stem(x))
        out = self.head(F.relu(self.body(x)).mean((2, 3)))
        if self.training:
            return out, self.side_head(F.dropout(F.relu(self.side(x)), 0.5, True).mean((2, 3)))
        return out


class Decoder(nn.Module):
    """Down, transposed convolution up, skip connection, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv(3, 6), conv(6, 8, stride=2)
        self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.fuse, self.shuffle, self.out = conv(11, 8), nn.PixelShuffle(2), conv(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        x = F.relu(self.up(F.relu(self.deep(skip))))
        return self.out(F.relu(self.shuffle(self.fuse(torch.cat([skip, x], 1)))))


class Spread(nn.Module):
    """Spatial attention: one map over all channels; and an instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.map, self.body = conv(3, 8), conv(8, 1), conv(8, 6)
        self.norm, self.head = nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.map(x))
        return self.head(F.relu(self.norm(self.body(x))).mean((2, 3)))


class HardCoded(nn.Module):
    """Code that assumes widths: a split with written-out sizes, a reshape, channels summed over."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(3, 8), conv(5, 6)
        self.free, self.head = conv(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, _ = self.stem(x).split([5, 3], dim=1)
        weight = self.a(x).view(-1, 2, 4, x.shape[2], x.shape[3]).sum((1, 2))
        x = self.b(left) * weight[:, None]
        return self.head(F.relu(self.free(F.relu(x))).mean((2, 3)))


def vgg() -> nn.Module:
    """Convolutions, pooling, flatten into linear layers."""
    return nn.Sequential(
        conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        conv(6, 8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4),
    )  # fmt: skip


def line() -> nn.Module:
    """One-dimensional convolutions with PReLU."""
    return nn.Sequential(
        nn.Conv1d(3, 6, 3), nn.PReLU(6), nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.AdaptiveMaxPool1d(1),
        nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def volume() -> nn.Module:
    """Three-dimensional convolutions."""
    return nn.Sequential(
        nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 5, 1),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip


def image(size: int = 12) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size)


NETS: dict[str, Case] = {
    "vgg": (vgg, image()),
    "line": (line, lambda: torch.randn(2, 3, 20)),
    "volume": (volume, lambda: torch.randn(2, 3, 4, 6, 6)),
    "residual": (Residual, image()),
    "concat": (Concat, image()),
    "inverted": (Inverted, image()),
    "option_a": (OptionA, image()),
    "bare": (Bare, image(6)),
    "shared": (Shared, image()),
    "halves": (Halves, image()),
    "auxiliary": (Auxiliary, image()),
    "decoder": (Decoder, image()),
    "spread": (Spread, image()),
    "hard_coded": (HardCoded, image()),
    **{name: (make, image()) for name, make in {**GRIDS, **SIZES}.items()},
}

_SIZES = {"inception_v3": 299}
_CLIPS = {"r3d_18": (8, 112), "r2plus1d_18": (8, 112), "mc3_18": (8, 112), "s3d": (16, 224)}


def torchvision_model(name: str, size: int | None = None) -> tuple[nn.Module, Tensor]:
    """A torchvision model with random weights, and an input; ``size`` overrides the usual image side."""
    kwargs: dict[str, object] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        kwargs["init_weights"] = False
    if any(part in name for part in ("fcn", "deeplab", "lraspp", "rcnn", "retinanet", "ssd", "fcos")):
        kwargs["weights_backbone"] = None
    model = torchvision.models.get_model(name, **kwargs)
    if name in _CLIPS:
        frames, side = _CLIPS[name]
        return model, torch.randn(1, 3, frames, size or side, size or side)
    side = size or _SIZES.get(name, 224)
    return model, torch.randn(1, 3, side, side)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm statistics, affines and biases, so that a mistake in any of them shows."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(t: Tensor, low: float, high: float) -> None:
        t.data.copy_(torch.rand(t.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.5, 1.5)
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.5, 0.5)
        elif isinstance(getattr(module, "bias", None), nn.Parameter):
            uniform(module.bias, -0.2, 0.2)
    return model


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A small net of the table in double precision, randomised, and its input."""
    make, example = NETS[name]
    torch.manual_seed(seed)
    return randomize(make().double(), seed), example().double()
