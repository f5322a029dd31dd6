"""Nets of the zoo whose code arranges channels as a grid: groups of a convolution, halves, heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class Grouped(nn.Module):
    """ResNeXt and RegNet: many narrow groups, which go whole, then few wide ones, which all lose the same entries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.norm, self.squeeze = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1)
        self.wide, self.head = nn.Conv2d(8, 12, 3, groups=2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.narrow(F.relu(self.stem(x)))))
        return self.head(F.relu(self.wide(F.relu(self.squeeze(x)))).mean((2, 3)))


class Shuffled(nn.Module):
    """ShuffleNet: half of the channels pass, the others are worked on, then both are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.deep = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
        )
        self.two, self.head = nn.Conv2d(6, 8, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = F.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([passed, self.two(self.deep(F.relu(self.one(worked))))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(x).mean((2, 3)))


class Halves(nn.Module):
    """Two halves of one layer, each with a reader of its own; and the larger of two halves (maxout)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
        self.pieces, self.head = nn.Conv2d(6, 10, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        x = self.pieces(F.relu(self.one(a)) + F.relu(self.other(b)))
        return self.head(x.view(x.shape[0], 2, -1, *x.shape[2:]).amax(1).mean((2, 3)))


class Heads(nn.Module):
    """A user's own attention: one projection for all, the number of heads kept as an attribute."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.fused, self.count = fused, 4
        self.patch, self.qkv, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 36), nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.patch(x)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.count, 3).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = F.softmax(torch.einsum("nhid,nhjd->nhij", q, k), -1) @ v
        return self.head(F.relu(self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


class Apart(nn.Module):
    """Takes channels apart by sizes that it keeps in a dict; another number is as large as the heads by chance."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.sizes, self.rank = sizes, sizes["heads"]

    def forward(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], *self.sizes.values(), -1).movedim(2, 0).transpose(2, 3)


class HeadsInside(nn.Module):
    """Attention whose heads are counted by a layer that only rearranges, deep inside of its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 36), nn.Linear(12, 6)
        self.apart, self.head = Apart(parts=3, heads=4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.apart(self.qkv(F.relu(self.patch(x)).flatten(2).transpose(1, 2)))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2)
        return self.head(F.relu(self.out(mixed)).mean(1))


class Separate(nn.Module):
    """Queries, keys and values from layers of their own, heads in the batch dimension, a bias for every head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 2
        self.patch = nn.Conv2d(3, 6, 4, 4)
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.bias = nn.Parameter(torch.randn(4, 1, 9))
        self.out = nn.Linear(8, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, self.width).transpose(1, 2).reshape(-1, x.shape[1], self.width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.patch(x)).flatten(2).transpose(1, 2)
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        logits = torch.bmm(q, k.transpose(1, 2)) * self.width**-0.5
        logits = logits.view(x.shape[0], self.heads, *logits.shape[1:]) + self.bias
        mixed = torch.matmul(F.softmax(logits, -1), v.view(x.shape[0], self.heads, -1, self.width))
        return self.out(mixed.transpose(1, 2).flatten(2).mean(1))


class Pooled(nn.Module):
    """MViT: every head's map is filtered, beside a token that is not, and the queries are added again, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width, self.inner = 4, 3, 12
        self.patch, self.token, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 36)
        self.filters = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, groups=3) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(3), nn.Linear(12, 3)

    def pool(self, x: Tensor, filter: nn.Module) -> Tensor:
        n, heads, length, width = x.shape
        token, maps = x.tensor_split((1,), dim=2)
        side = int((length - 1) ** 0.5)
        maps = filter(maps.transpose(2, 3).reshape(n * heads, width, side, side))
        maps = maps.reshape(n, heads, width, length - 1).transpose(2, 3)
        return self.norm(torch.cat([token, maps], 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), F.relu(self.patch(x)).flatten(2).transpose(1, 2)], 1)
        heads = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, self.width).transpose(1, 3).unbind(2)
        q, k, v = (self.pool(part, filter) for part, filter in zip(heads, self.filters, strict=True))
        x = F.softmax(q @ k.transpose(2, 3), -1) @ v
        x[:, :, 1:] += q[:, :, 1:]
        return self.out(x.transpose(1, 2).reshape(x.shape[0], -1, self.inner).mean(1))


class Multihead(nn.Module):
    """``nn.MultiheadAttention``, with queries from elsewhere and a mask, and a transformer's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.query = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 2, 8))
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(F.relu(self.patch(x)).flatten(2).transpose(1, 2))
        mask = torch.zeros(2, x.shape[1], dtype=torch.bool)
        mask[0, -1] = True
        pooled, _ = self.attention(self.query.expand(len(x), -1, -1), x, x, attn_mask=mask)
        return self.head(pooled.sum(1))


class Windows(nn.Module):
    """Swin's attention over shifted windows, first and second version."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.first = ShiftedWindowAttention(6, [2, 2], [1, 1], 3)
        self.second = ShiftedWindowAttentionV2(6, [4, 4], [0, 0], 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).permute(0, 2, 3, 1)
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((1, 2)))


class GroupNormed(nn.Module):
    """Statistics over groups of channels, which therefore go whole, in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12)
        self.inner, self.inner_norm = nn.Conv2d(12, 8, 1), nn.GroupNorm(8, 8)
        self.outer, self.head = nn.Conv2d(8, 12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(F.relu(self.inner_norm(self.inner(x))))
        return self.head(F.relu(x).mean((2, 3)))


class Upsampled(nn.Module):
    """As in diffusion models: the width is asserted, and two numbers count what comes in and what goes out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.out_channels = channels, channels
        self.conv = nn.Conv2d(channels, self.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.conv(F.interpolate(x, scale_factor=2.0))


class GroupNormedParts(nn.Module):
    """A U-Net of diffusion: statistics over groups of concatenated channels, which are not those of either part.

    Of the 16 channels of ``enc`` four belong to a group that has two of ``up``'s, so that those stay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.enc_norm, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(8, 16), nn.Conv2d(16, 8, 2, 2)
        self.up, self.joined_norm, self.head = Upsampled(8), nn.GroupNorm(8, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enc(x)
        deep = self.up(F.silu(self.down(F.silu(self.enc_norm(skip)))))
        x = F.silu(self.joined_norm(torch.cat([skip, deep], 1)))
        return self.head(x.mean((2, 3)))


GRIDS: dict[str, Callable[[], nn.Module]] = {
    "grouped": Grouped,
    "shuffled": Shuffled,
    "chunks": Halves,
    "heads": Heads,
    "heads_written_out": lambda: Heads(fused=False),
    "heads_inside": HeadsInside,
    "heads_separate": Separate,
    "heads_pooled": Pooled,
    "multihead": Multihead,
    "windows": Windows,
    "group_normed": GroupNormed,
    "group_normed_parts": GroupNormedParts,
}
