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

from collections.abc import Mapping

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
    "scale_kept",
    "scale_of",
]

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


def scale_kept(module: nn.Module, head: int, values: Mapping[str, int]) -> dict[str, int]:
    """How wide the heads of a module were that its products stay scaled by; nothing if they still are."""
    dense = values.get(SCALED_BY, vars(module).get(SCALED_BY))
    return {} if dense in (None, head) else {SCALED_BY: dense}


def scale_of(module: nn.Module, head: int) -> float:
    """What the products of queries and keys are multiplied by: the square root of what heads were wide, inverted."""
    return (vars(module).get(SCALED_BY) or head) ** -0.5


_QUERIES = "_queries_watched"
