"""Attention with fewer or thinner heads than its width allows: what the stock modules' own code cannot run.

``nn.MultiheadAttention`` and torchvision's window attentions compute the width of a head from the width of their
input, so they cannot lose a head, nor a coordinate of each. Each has a subclass here with a forward pass of our own, in
which the number of heads, their width, the scale of their products and the width of the input are independent. A module
changes to it, in place, when it loses something: parameters, names and hooks stay. It also runs it while scores are
gathered, since the stock code never calls the output projection as a module, so that nothing could be hooked there; the
class goes back if nothing went.

Shape legend: B = batch, L = queries, S = keys, E = width of the input, H = heads, D = width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.errors import UnsupportedModelError

__all__ = [
    "HEAD_WIDTH",
    "SCALED_BY",
    "PrunedMultiheadAttention",
    "hand_queries_to",
    "handed_on",
    "hands_queries_on",
    "heads_left",
    "headwise",
    "is_stock",
    "projection_of",
    "scale_kept",
    "scale_of",
]

WINDOWS = "lightning_taylor.graph.windows"
HEAD_WIDTH, SCALED_BY = "head_width", "scaled_by"
"""How wide the heads of a module are, as a trace says it; and how wide they were, which scales their products."""


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with any number of heads.

    Example:
        >>> attention = nn.MultiheadAttention(8, 4, batch_first=True).eval()
        >>> x = torch.rand(2, 5, 8)
        >>> expected, _ = attention(x, x, x)
        >>> attention.__class__ = PrunedMultiheadAttention
        >>> torch.allclose(attention(x, x, x)[0], expected, atol=1e-6)
        True
    """

    @override
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``.

        Raises:
            UnsupportedModelError: for ``add_bias_kv`` and ``add_zero_attn``.
        """
        if self.bias_k is not None or self.bias_v is not None or self.add_zero_attn:
            raise UnsupportedModelError("heads of an attention with add_bias_kv or add_zero_attn cannot be removed")
        batched = query.ndim == 3
        sources = [x if batched else x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value)]
        if not self.batch_first:
            sources = [x.transpose(0, 1) for x in sources]
        queries, *rest = map(F.linear, sources, self._weights(), self._biases())
        q_BHLD, k_BHSD, v_BHSD = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (handed_on(self, queries), *rest)
        )
        mask, scale = self._mask(attn_mask, key_padding_mask, q_BHLD), scale_of(self, self.head_dim)
        dropout = self.dropout if self.training else 0.0
        weights_BHLS = None
        if need_weights:
            logits_BHLS = (q_BHLD * scale) @ k_BHSD.transpose(-2, -1)
            weights_BHLS = F.softmax(logits_BHLS if mask is None else logits_BHLS + mask, dim=-1)
            weights_BHLS = F.dropout(weights_BHLS, p=dropout) if dropout else weights_BHLS
            mixed_BHLD = weights_BHLS @ v_BHSD
        else:
            causal = is_causal and mask is None
            mixed_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHSD, v_BHSD, mask, dropout, causal, scale=scale)
        out = self.out_proj(mixed_BHLD.transpose(1, 2).flatten(2))
        if weights_BHLS is not None and average_attn_weights:
            weights_BHLS = weights_BHLS.mean(1)
        if not self.batch_first:
            out = out.transpose(0, 1)
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            weights_BHLS = None if weights_BHLS is None else weights_BHLS.squeeze(0)
        return out, weights_BHLS

    def _weights(self) -> tuple[Tensor, ...]:
        if self.in_proj_weight is not None:
            return self.in_proj_weight.chunk(3)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def _biases(self) -> tuple[Tensor | None, ...]:
        return (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)

    def _mask(self, attn_mask: Tensor | None, padding_BS: Tensor | None, q_BHLD: Tensor) -> Tensor | None:
        """Both masks as one to add to the logits; boolean ones say what is left out."""
        added = None
        if attn_mask is not None:
            added = _additive(attn_mask, q_BHLD)
            if added.ndim == 3:  # one per example and head
                added = added.unflatten(0, (-1, self.num_heads))
        if padding_BS is not None:
            padding = _additive(padding_BS.reshape(-1, 1, 1, padding_BS.shape[-1]), q_BHLD)
            added = padding if added is None else added + padding
        return added


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))


def headwise(module: nn.Module) -> type[nn.Module] | None:
    """The class that runs this attention with any number of heads; None if it is no attention that we know.

    Only the classes themselves: a subclass of the user's has code of its own.
    """
    pruned = _TABLE.get(_name(type(module)))
    if isinstance(module, nn.MultiheadAttention) and (module.bias_k is not None or module.add_zero_attn):
        return None
    return pruned() if pruned else None


def is_stock(module: nn.Module) -> bool:
    """Whether it runs the code that does not call its output projection."""
    return _name(type(module)) in _TABLE


def projection_of(module: nn.Module) -> str | None:
    """The name of an attention's output projection, which only the headwise class calls as a module."""
    return _PROJECTIONS.get(_name(type(module)))


def hands_queries_on(module: nn.Module) -> bool:
    """Whether it computes its queries without a call of the layer that makes them, and our class hands them on."""
    return _name(type(module)) in _HANDING


def hand_queries_to(module: nn.Module, watcher: nn.Module | None) -> None:
    """Let a module be called with the queries, whose output is used in their place; None for no one any more."""
    # Past nn.Module's own __setattr__, which would make it a child with a name in the state dict.
    if watcher is None:
        vars(module).pop(_QUERIES, None)
    else:
        vars(module)[_QUERIES] = watcher


def handed_on(module: nn.Module, queries: Tensor) -> Tensor:
    """The queries, after whoever watches them: shape ``(..., E)``, examples first; keys and values may lie behind."""
    watcher = vars(module).get(_QUERIES)
    return queries if watcher is None else watcher(queries)


def heads_left(module: nn.Module, values: Mapping[str, int] | None = None) -> Mapping[str, object]:
    """What the attributes of an attention must be for the shapes of its parameters, its class included.

    Nothing for a subclass of the user's: only its author knows what its code makes of them.

    Args:
        module: as its tensors are now.
        values: of what ``known`` gives, this module's; without ``HEAD_WIDTH``, its heads are as wide as they were.
    """
    if _name(type(module)) not in _PROJECTIONS:
        return {}
    if not isinstance(module, nn.MultiheadAttention):
        return import_module(WINDOWS).heads_left(module, values or {})
    rows = module.in_proj_weight.shape[0] // 3 if module.in_proj_weight is not None else len(module.q_proj_weight)
    width = (module.q_proj_weight if module.in_proj_weight is None else module.in_proj_weight).shape[1]
    head = (values or {}).get(HEAD_WIDTH) or int(module.head_dim)
    scale = scale_kept(module, head, values or {})
    fits = (rows, rows) == (width, width) == module.out_proj.weight.shape and not scale
    return {
        "num_heads": rows // head,
        "head_dim": head,
        "embed_dim": width,
        # Else the fused kernel of nn.TransformerEncoderLayer would be fed with it, past every forward pass.
        "_qkv_same_embed_dim": fits and module.in_proj_weight is not None,
        "__class__": nn.MultiheadAttention if fits else PrunedMultiheadAttention,
        **scale,
    }


def scale_kept(module: nn.Module, head: int, values: Mapping[str, int]) -> dict[str, int]:
    """How wide the heads of a module were that its products stay scaled by; nothing if they still are."""
    dense = values.get(SCALED_BY, vars(module).get(SCALED_BY))
    return {} if dense in (None, head) else {SCALED_BY: dense}


def scale_of(module: nn.Module, head: int) -> float:
    """What the products of queries and keys are multiplied by: the square root of what heads were wide, inverted."""
    return (vars(module).get(SCALED_BY) or head) ** -0.5


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _of_windows(name: str) -> Callable[[], type[nn.Module]]:
    """Imported when it is met: torchvision's models take a second."""
    return lambda: getattr(import_module(WINDOWS), name)


_SWIN = "torchvision.models.swin_transformer.ShiftedWindowAttention"
_SWIN_3D = "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d"
_MAXVIT = "torchvision.models.maxvit.RelativePositionalMultiHeadAttention"
_TABLE: dict[str, Callable[[], type[Any]]] = {
    _name(nn.MultiheadAttention): lambda: PrunedMultiheadAttention,
    _SWIN: _of_windows("PrunedWindowAttention"),
    f"{_SWIN}V2": _of_windows("PrunedWindowAttentionV2"),
    _SWIN_3D: _of_windows("PrunedWindowAttention3d"),
    _MAXVIT: _of_windows("PrunedRelativeAttention"),
}
"""Stock class -> ours."""
_PROJECTIONS = {
    **dict.fromkeys((_name(nn.MultiheadAttention), _name(PrunedMultiheadAttention)), "out_proj"),
    **dict.fromkeys((_SWIN, f"{_SWIN}V2", _SWIN_3D), "proj"),
    **dict.fromkeys((f"{WINDOWS}.PrunedWindowAttention{version}" for version in ("", "V2", "3d")), "proj"),
    **dict.fromkeys((_MAXVIT, f"{WINDOWS}.PrunedRelativeAttention"), "merge"),
}
"""Class, stock or ours -> its output projection."""
_HANDING = {
    *map(_name, (nn.MultiheadAttention, PrunedMultiheadAttention)), f"{_SWIN}V2", f"{WINDOWS}.PrunedWindowAttentionV2"
}  # fmt: skip
"""Those whose headwise class hands its queries to whoever watches them."""
_QUERIES = "_queries_watched"
