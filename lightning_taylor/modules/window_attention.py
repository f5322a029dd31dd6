"""torchvision's attentions over windows (Swin, Swin v2, MaxViT) with any number of heads; see ``heads``.

Shape legend: N = batch, Y/X = rows and columns of the map, C = channels, W = windows of the whole batch, T = tokens of
a window, H = heads, D = width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d
from typing_extensions import override

from lightning_taylor.modules.attention import handed_on, scale_kept, scale_of

__all__ = [
    "PrunedRelativeAttention",
    "PrunedWindowAttention",
    "PrunedWindowAttention3d",
    "PrunedWindowAttentionV2",
    "heads_left",
]


class PrunedWindowAttention(ShiftedWindowAttention):
    """Swin's attention: logits scaled by the width of a head, and a learnt bias for each pair of positions."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, Y, X, C)`` in and out."""
        windows = _Windows(x, self.window_size, self.shift_size)
        q_WHTD, k_WHTD, v_WHTD = _heads(self.qkv(windows.cut(x)), self.num_heads)
        logits_WHTT = (q_WHTD * scale_of(self, q_WHTD.shape[-1])) @ k_WHTD.transpose(-2, -1)
        logits_WHTT = logits_WHTT + self.get_relative_position_bias()
        return windows.join(_mix(self, logits_WHTT, v_WHTD, windows))


class PrunedWindowAttentionV2(ShiftedWindowAttentionV2):
    """Swin v2's: cosines with a learnt scale per head; the keys have no bias."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, Y, X, C)`` in and out."""
        windows = _Windows(x, self.window_size, self.shift_size)
        bias = self.qkv.bias
        if bias is not None:
            bias, third = bias.clone(), len(bias) // 3
            bias[third : 2 * third].zero_()
        qkv_WTE = handed_on(self, F.linear(windows.cut(x), self.qkv.weight, bias))
        q_WHTD, k_WHTD, v_WHTD = _heads(qkv_WTE, self.num_heads)
        cosines_WHTT = F.normalize(q_WHTD, dim=-1) @ F.normalize(k_WHTD, dim=-1).transpose(-2, -1)
        logits_WHTT = cosines_WHTT * self.logit_scale.clamp(max=math.log(100.0)).exp()
        logits_WHTT = logits_WHTT + self.get_relative_position_bias()
        return windows.join(_mix(self, logits_WHTT, v_WHTD, windows))


class PrunedWindowAttention3d(ShiftedWindowAttention3d):
    """Swin's attention for clips; a window that is larger than the clip becomes as large as it."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, frames, Y, X, C)`` in and out."""
        pairs = zip(x.shape[1:4], self.window_size, self.shift_size, strict=True)
        fitting = [(n, 0) if n <= size else (size, shift) for n, size, shift in pairs]
        sizes = [size for size, _ in fitting]
        windows = _Windows(x, sizes, [shift for _, shift in fitting])
        q_WHTD, k_WHTD, v_WHTD = _heads(self.qkv(windows.cut(x)), self.num_heads)
        logits_WHTT = (q_WHTD * scale_of(self, q_WHTD.shape[-1])) @ k_WHTD.transpose(-2, -1)
        logits_WHTT = logits_WHTT + self.get_relative_position_bias(sizes)
        return windows.join(_mix(self, logits_WHTT, v_WHTD, windows))


class PrunedRelativeAttention(RelativePositionalMultiHeadAttention):
    """MaxViT's: over windows that somebody else has cut."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, G, T, C)`` in and out, G = windows of an example."""
        heads = (
            part.unflatten(-1, (self.n_heads, self.head_dim)).transpose(2, 3) for part in self.to_qkv(x).chunk(3, -1)
        )
        q_NGHTD, k_NGHTD, v_NGHTD = heads
        logits = q_NGHTD @ (k_NGHTD * self.scale_factor).transpose(-2, -1) + self.get_relative_positional_bias()
        return self.merge((F.softmax(logits, dim=-1) @ v_NGHTD).transpose(2, 3).flatten(3))


class _Windows:
    """How a map (or a clip) is padded, shifted and cut into windows, and put together again."""

    def __init__(self, x: Tensor, size: Sequence[int], shift: Sequence[int]) -> None:
        _, *self.map, _ = x.shape
        self.size = tuple(size)
        self.padded = [-(-n // s) * s for n, s in zip(self.map, size, strict=True)]
        # A map that is no larger than a window has nothing to exchange with its neighbours.
        self.shift = [0 if s >= n else d for n, s, d in zip(self.padded, size, shift, strict=True)]
        self.grid = [n // s for n, s in zip(self.padded, size, strict=True)]
        self.count = math.prod(self.grid)
        self._dims = tuple(range(1, len(self.map) + 1))

    def cut(self, x: Tensor) -> Tensor:
        """Shape ``(N, ..., C)`` to ``(W, T, C)``."""
        missing = [(0, large - small) for small, large in zip(self.map, self.padded, strict=True)]
        x = F.pad(x, (0, 0, *(amount for pair in reversed(missing) for amount in pair)))
        if any(self.shift):
            x = x.roll([-s for s in self.shift], self._dims)
        return self._parts(x)

    def join(self, x: Tensor) -> Tensor:
        """Shape ``(W, T, C)`` to ``(N, ..., C)``."""
        k = len(self.size)
        x = x.reshape(-1, *self.grid, *self.size, x.shape[-1])
        x = x.permute(0, *(d for i in range(k) for d in (1 + i, 1 + k + i)), -1).reshape(-1, *self.padded, x.shape[-1])
        if any(self.shift):
            x = x.roll(self.shift, self._dims)
        return x[(slice(None), *(slice(n) for n in self.map))].contiguous()

    def mask(self, like: Tensor) -> Tensor | None:
        """-100 between tokens that only the shift has brought together, shape ``(windows, 1, T, T)``."""
        if not any(self.shift):
            return None
        region = torch.zeros((), dtype=torch.long, device=like.device)
        for n, s, d in zip(self.padded, self.size, self.shift, strict=True):
            place = torch.arange(n, device=like.device)
            own = (place >= n - s).long() + (place >= n - d) if d else torch.zeros_like(place)
            region = 3 * region[..., None] + own
        region_WT = self._parts(region[None, ..., None]).squeeze(-1)
        apart = region_WT[:, :, None] != region_WT[:, None, :]
        return (apart * -100.0).to(like.dtype).unsqueeze(1)

    def _parts(self, x: Tensor) -> Tensor:
        k = len(self.size)
        x = x.reshape(-1, *(n for pair in zip(self.grid, self.size, strict=True) for n in pair), x.shape[-1])
        x = x.permute(0, *range(1, 2 * k, 2), *range(2, 2 * k + 1, 2), -1)
        return x.reshape(-1, math.prod(self.size), x.shape[-1])


def _heads(qkv_WTE: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each of shape ``(W, H, T, D)``."""
    q, k, v = qkv_WTE.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _mix(
    module: ShiftedWindowAttention | ShiftedWindowAttention3d, logits_WHTT: Tensor, v_WHTD: Tensor, windows: _Windows
) -> Tensor:
    """The values that the logits choose, through the output projection, shape ``(W, T, C)``."""
    mask = windows.mask(logits_WHTT)
    if mask is not None:
        logits_WHTT = (logits_WHTT.unflatten(0, (-1, windows.count)) + mask).flatten(0, 1)
    weights_WHTT = F.dropout(F.softmax(logits_WHTT, dim=-1), p=module.attention_dropout, training=module.training)
    out = module.proj((weights_WHTT @ v_WHTD).transpose(1, 2).flatten(2))
    return F.dropout(out, p=module.dropout, training=module.training)


def heads_left(module: nn.Module, values: Mapping[str, int]) -> Mapping[str, object]:
    """As ``heads.heads_left``; how many heads there are, each of these modules has a tensor that says."""
    if isinstance(module, RelativePositionalMultiHeadAttention):
        (rows, width), heads = module.to_qkv.weight.shape, module.relative_position_bias_table.shape[1]
        return {
            "n_heads": heads,
            "head_dim": rows // 3 // heads,
            "__class__": RelativePositionalMultiHeadAttention if rows == 3 * width else PrunedRelativeAttention,
        }
    assert isinstance(module, ShiftedWindowAttention | ShiftedWindowAttention3d)
    rows, width = module.qkv.weight.shape
    scale: Mapping[str, int] = {}
    if isinstance(module, ShiftedWindowAttentionV2):
        heads, stock, pruned = module.logit_scale.shape[0], ShiftedWindowAttentionV2, PrunedWindowAttentionV2
    else:
        heads = module.relative_position_bias_table.shape[1]
        clips = isinstance(module, ShiftedWindowAttention3d)
        stock = ShiftedWindowAttention3d if clips else ShiftedWindowAttention
        pruned = PrunedWindowAttention3d if clips else PrunedWindowAttention
        scale = scale_kept(module, rows // 3 // heads, values)
    fits = rows == 3 * width and module.proj.weight.shape[0] == width and not scale
    return {"num_heads": heads, "__class__": stock if fits else pruned, **scale}
