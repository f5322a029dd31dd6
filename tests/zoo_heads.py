"""Small networks with an attention whose heads can lose coordinates, one for each way of writing it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import MaxVit, VisionTransformer
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from zoo import randomize


class Stock(nn.Module):
    """``nn.MultiheadAttention`` over the patches of an image, beside a path around it."""

    def __init__(self, *, need_weights: bool = False, source: int | None = None) -> None:
        super().__init__()
        self.stem, self.need_weights = nn.Conv2d(3, 12, 4, 4), need_weights
        self.source = None if source is None else nn.Conv2d(3, source, 4, 4)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, kdim=source, vdim=source)
        self.head = nn.Linear(12, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = patches(self.stem(image))
        source = x if self.source is None else patches(self.source(image))
        mixed, weights = self.attention(x, source, source, need_weights=self.need_weights)
        found = self.head((x + mixed).mean(1))
        return found if weights is None else found + weights.square().mean((1, 2))[:, None]


class Own(nn.Module):
    """An attention of the user's: queries, keys and values from one layer, or from three."""

    def __init__(self, *, fused: bool = False, one_layer: bool = True, scaled: bool = True) -> None:
        super().__init__()
        self.stem, self.fused, self.scaled = nn.Conv2d(3, 10, 4, 4), fused, scaled
        self.heads, self.width, self.scale = 3, 4, 4**-0.5
        self.qkv = nn.Linear(10, 36) if one_layer else None
        self.q, self.k, self.v = (nn.Linear(10, 12, bias=bias) for bias in (True, False, True))
        self.join, self.head = nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = patches(self.stem(image))
        shape = (*x.shape[:2], -1, self.heads, self.width)
        if self.qkv is None:
            q, k, v = (layer(x).reshape(shape).squeeze(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        else:
            q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale if self.scaled else None)
        else:
            mixed = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head((x + self.join(mixed.transpose(1, 2).flatten(2))).mean(1))


class NonLocal(nn.Module):
    """A block of one head over all positions, as in non-local networks: nothing is arranged in heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.join, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 5)
        self.q, self.k, self.v = (nn.Conv2d(8, width, 1) for width in (4, 4, 6))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        mixed = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
        return self.head((x + self.join(mixed.unflatten(2, x.shape[2:]))).mean((2, 3)))


def patches(x: Tensor) -> Tensor:
    """Shape ``(N, C, Y, X)`` to ``(N, T, C)``."""
    return x.flatten(2).transpose(1, 2)


def swin(version: int) -> nn.Module:
    """Two stages, of one and two heads."""
    later = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if version == 2 else {}
    return SwinTransformer([2, 2], 8, [1, 1], [1, 2], [4, 4], num_classes=5, stochastic_depth_prob=0.0, **later)


def maxvit() -> nn.Module:
    """One block of two attentions."""
    return MaxVit(
        (32, 32), stem_channels=8, partition_size=2, block_channels=[16], block_layers=[1], head_dim=8,
        stochastic_depth_prob=0.0, num_classes=5,
    )  # fmt: skip


SPREAD: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "stock": (Stock, 16),
    "stock_weights": (lambda: Stock(need_weights=True), 16),
    "stock_cross": (lambda: Stock(source=7), 16),
    "own": (Own, 16),
    "own_fused": (lambda: Own(fused=True), 16),
    "own_three": (lambda: Own(one_layer=False), 16),
    "own_three_fused": (lambda: Own(one_layer=False, fused=True), 16),
    "non_local": (NonLocal, 8),
    "vit": (lambda: VisionTransformer(32, 8, 1, 2, 16, 24, num_classes=5), 32),
    "swin": (lambda: swin(1), 32),
    "swin_v2": (lambda: swin(2), 32),
    "maxvit": (maxvit, 32),
}
"""Name -> how to build it, and the side of its images."""


def build_spread(name: str) -> tuple[nn.Module, Tensor]:
    """A net of the table in double precision and evaluation mode, with weights that tell channels apart; two images."""
    make, side = SPREAD[name]
    torch.manual_seed(0)
    model = randomize(make()).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.4)
    return model, torch.randn(2, 3, side, side, dtype=torch.float64)
