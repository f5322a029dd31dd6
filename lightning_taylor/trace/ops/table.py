"""Operator name -> rule, in one table."""

from __future__ import annotations

from typing import Any

import torch

from lightning_taylor.trace.ops.attention import attention
from lightning_taylor.trace.ops.conv import convolution
from lightning_taylor.trace.ops.matmul import embedding, matmul
from lightning_taylor.trace.ops.norm import batch_norm, group_norm, normalized_over, weight_norm
from lightning_taylor.trace.ops.pointwise import keep_extent, pointwise
from lightning_taylor.trace.ops.reduction import along, glu, pad, per_map, pool, reduce
from lightning_taylor.trace.ops.view import move, put
from lightning_taylor.trace.state import Rule

__all__ = [
    "RULES",
    "SEVERAL",
    "fallback",
]

_MOVES = """view _unsafe_view reshape _reshape_alias permute transpose t numpy_T expand unsqueeze squeeze slice select
split split_with_sizes split_copy unsafe_split unsafe_split_with_sizes unsafe_chunk unbind
cat stack flip roll repeat detach alias as_strided unfold im2col
pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle index index_select gather narrow diagonal movedim
lift_fresh lift rot90 tril triu select_scatter slice_scatter repeat_interleave""".split()

_POINTWISE = """hardswish hardtanh hardsigmoid _prelu_kernel prelu clone copy _to_copy where masked_fill fill zero
contiguous leaky_relu relu6 dropout native_dropout rrelu_with_noise_functional threshold celu selu mish""".split()

_LIKE = "zeros_like ones_like empty_like full_like rand_like randn_like bernoulli".split()

_PER_MAP = """max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
_upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
replication_pad2d replication_pad3d mkldnn_max_pool2d mkldnn_max_pool3d quantized_max_pool2d""".split()

_REDUCE = """mean sum amax amin prod var std var_mean std_mean logsumexp any all norm linalg_vector_norm max min argmax
argmin median nansum nanmean count_nonzero""".split()

_ALONG = "_softmax _safe_softmax _log_softmax softmax log_softmax cumsum cumprod logcumsumexp sort topk".split()

_BATCH_NORMS = """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
miopen_batch_norm _batch_norm_with_update _batch_norm_no_update""".split()

_ATTENTIONS = """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention""".split()

_BY_COORDINATES = "roi_align roi_pool grid_sampler_2d grid_sampler_3d cudnn_grid_sampler".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, move),
    **dict.fromkeys(_POINTWISE, pointwise),
    **dict.fromkeys(_LIKE, keep_extent),
    **dict.fromkeys(_PER_MAP, per_map),
    **dict.fromkeys(_REDUCE, reduce),
    **dict.fromkeys(_ALONG, along),
    **dict.fromkeys(_BATCH_NORMS, batch_norm),
    **dict.fromkeys("mm bmm addmm baddbmm".split(), matmul),
    **dict.fromkeys(_ATTENTIONS, attention),
    "constant_pad_nd": pad,
    "convolution": convolution,
    "embedding": embedding,
    "glu": glu,
    "index_put": put,
    "native_group_norm": group_norm,
    "native_layer_norm": normalized_over,
    "_fused_rms_norm": normalized_over,
    **dict.fromkeys(_BY_COORDINATES, pool),
    "_weight_norm_interface": weight_norm,
}

SEVERAL: frozenset[Rule] = frozenset(
    {along, attention, batch_norm, convolution, group_norm, keep_extent, matmul, move, normalized_over, per_map}
    | {pointwise, reduce}
)
"""The rules that know what to do with channels along several dimensions."""


def fallback(func: Any) -> Rule | None:
    """The rule of an operator that has no row: torch's own tags say whether it is pointwise or a view."""
    if torch.Tag.pointwise in func.tags:
        return pointwise
    return move if func.is_view else None
