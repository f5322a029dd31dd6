"""Operator name -> rule, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

from lightning_taylor.trace.labels import Labels
from lightning_taylor.trace.operator_call import qualified_name
from lightning_taylor.trace.ops.attention import attention
from lightning_taylor.trace.ops.conv import convolution, deformed
from lightning_taylor.trace.ops.fourier import as_complex, as_real, fourier
from lightning_taylor.trace.ops.matmul import embedding, matmul
from lightning_taylor.trace.ops.norm import batch_norm, group_norm, normalized_over, weight_norm
from lightning_taylor.trace.ops.pointwise import keep_extent, outputs_of, pointwise
from lightning_taylor.trace.ops.reduction import along, fold, glu, loss, pad, per_map, pool, reduce, unpool
from lightning_taylor.trace.ops.view import move, put
from lightning_taylor.trace.state import Call, Rule

__all__ = [
    "Row",
    "find_rule",
    "register_rule",
    "unregister_rule",
]

_MOVES = """view _unsafe_view reshape _reshape_alias permute transpose t numpy_T expand unsqueeze squeeze slice select
split split_with_sizes split_copy unsafe_split unsafe_split_with_sizes unsafe_chunk unbind
cat stack flip roll repeat detach alias as_strided unfold im2col
pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle index index_select gather narrow diagonal movedim
lift_fresh lift rot90 tril triu select_scatter slice_scatter repeat_interleave""".split()

_POINTWISE = """hardswish hardtanh hardsigmoid _prelu_kernel prelu clone copy _to_copy where masked_fill fill zero
contiguous leaky_relu relu6 dropout native_dropout rrelu_with_noise_functional threshold celu selu mish
complex log_sigmoid_forward""".split()

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

_LOSSES = """mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy
binary_cross_entropy_with_logits""".split()

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
    **dict.fromkeys(_LOSSES, loss),
    **dict.fromkeys("_fft_r2c _fft_c2r _fft_c2c".split(), fourier),
    **dict.fromkeys("max_unpool2d max_unpool3d".split(), unpool),
    "col2im": fold,
    "deform_conv2d": deformed,
    "view_as_complex": as_complex,
    "view_as_real": as_real,
    "_weight_norm_interface": weight_norm,
}

SEVERAL: frozenset[Rule] = frozenset(
    {along, as_real, attention, batch_norm, convolution, fourier, group_norm, keep_extent, matmul, move}
    | {normalized_over, per_map, pointwise, reduce}
)
"""The rules that know what to do with channels along several dimensions."""


_NAMESPACES = {"aten", "torchvision"}
"""Whose operators the rules above are for: ``mylib::norm`` may be anything."""

_REGISTERED: dict[str, Row] = {}
"""``mylib::scale_shift`` -> the row that a user registered."""


class Row(NamedTuple):
    """What the table says of an operator: its rule, and whether that knows channels along several dimensions."""

    rule: Rule
    several_axes: bool


def find_rule(func: Any) -> Row | None:
    """Return the row of an operator: one that a user registered, the table's, or one by torch's own tags, or None.

    The tags say which operators are pointwise or views: those need no row.
    """
    name = qualified_name(func._schema.name)
    if name in _REGISTERED:
        return _REGISTERED[name]
    namespace, _, bare = name.partition("::")
    rule = RULES.get(bare) if namespace in _NAMESPACES else None
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = pointwise
    elif rule is None and func.is_view:
        rule = move
    return None if rule is None else Row(rule, rule in SEVERAL)


def register_rule(targets: Any, *, several_axes: bool = False) -> Callable[[Rule], Rule]:
    """Say what an operator of your own does with channels, so that layers around it can be pruned.

    A trace follows channels through a network operator by operator, and freezes what it has no rule for. A rule gets
    the call after it ran. It ties what goes together, and returns what the outputs carry:

    * Of an activation ``(N, C, H, W)`` with channels along C, the labels are one int64 tensor of that same shape, of
      which each entry is the number of the channel; ``Labels.slots`` holds it. Of a parameter it holds one such tensor
      per dimension with more than one entry. ``call.labels("x")`` gives those of the argument called ``x`` in the
      operator's schema, or None: of None, of no tensor, and of tensors without channels such as the network's input.
    * The result is ``Labels``, whose tensors have the shape of the output, or None for an output without channels; for
      an operator with several outputs, a sequence of those.

    Whether a rule is right need not be taken on trust: ``trace_channels`` proves every group by removing channels from
    a copy, and freezes what fails. The rule holds for all overloads of the operator, and for its in-place variant.
    FLOPs are counted by ``torch.utils.flop_counter``: register a formula there, too, if the operator has any to speak
    of. An operator that torch takes apart before it runs (``CompositeImplicitAutograd``) needs no rule, and gets none.

    Args:
        targets: the operator, or several: what ``torch.library.custom_op`` returned, ``torch.ops.mylib.scale_shift``,
            one of its overloads, or a name such as ``"mylib::scale_shift"``. One of torch's own can be given a rule in
            place of ours.
        several_axes: whether the rule can deal with activations whose channels run along several dimensions (heads,
            and the width of each), of which ``Labels.slots`` holds one tensor per dimension. If not, those are frozen
            where they meet the operator.

    Returns:
        A decorator, which gives back the rule as it is.

    Raises:
        TypeError: if a target is no operator.
        ValueError: if a name has no namespace, or the operator was registered before; see ``unregister_rule``.

    A trace raises ``UnsupportedModelError`` if the rule raises, or if what it returns is not of an output's shape.

    Example:
        >>> from lightning_taylor.extend import register_rule, tie_vector, unregister_rule
        >>> @torch.library.custom_op("docs::scale", mutates_args=())
        ... def scale(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        ...     return x * gain[:, None, None]
        >>> @register_rule(scale)
        ... def scale_rule(call):
        ...     x = call.labels("x")
        ...     tie_vector(call, x, "gain", dim=1)  # an entry of gain goes with its channel ...
        ...     return x  # ... which the output carries where the input did
        >>> unregister_rule(scale)
    """
    names = _names_of(targets)
    if taken := [name for name in names if name in _REGISTERED]:
        raise ValueError(f"{taken[0]} has a rule already; call unregister_rule first to give it another")

    def register(rule: Rule) -> Rule:
        _REGISTERED.update(dict.fromkeys(names, Row(_checked(rule), several_axes)))
        return rule

    return register


def unregister_rule(targets: Any) -> None:
    """Take back what ``register_rule`` did for the same targets; an operator of torch's has our rule again.

    Raises:
        KeyError: if one of them has no rule of a user's.
    """
    for name in _names_of(targets):
        del _REGISTERED[name]


def _names_of(targets: Any) -> list[str]:
    return [_name_of(target) for target in (targets if isinstance(targets, list | tuple | set) else [targets])]


def _name_of(target: Any) -> str:
    if isinstance(target, str):
        if "::" not in target:
            raise ValueError(f"{target!r} has no namespace; write it as in 'mylib::{target}'")
        return qualified_name(target)
    if isinstance(target, OpOverload):
        return qualified_name(target._schema.name)
    if isinstance(target, OpOverloadPacket):
        return qualified_name(target._qualified_op_name)
    if isinstance(target, CustomOpDef):
        return qualified_name(target._qualname)
    raise TypeError(
        f"a rule is for an operator such as torch.ops.mylib.scale_shift, or its name, got {target!r}; of a Python "
        "function, torch.library.custom_op makes one"
    )


def _checked(rule: Rule) -> Rule:
    """Run a user's rule, and look whether it returned what a trace can go on with."""

    @wraps(rule)
    def run(call: Call) -> Labels | Sequence[Labels | None] | None:
        result = rule(call)
        results = [result] if result is None or isinstance(result, Labels) else result
        for labels, tensor in zip(results, outputs_of(call), strict=False):
            if labels is not None and not isinstance(labels, Labels):
                raise TypeError(f"the rule of {call.name} returned {type(labels).__name__}, not Labels or None")
            for slot in labels.slots if labels is not None else ():
                if slot.shape != tensor.shape:
                    raise ValueError(
                        f"the rule of {call.name} returned labels of shape {tuple(slot.shape)} for an output of shape "
                        f"{tuple(tensor.shape)}"
                    )
        return result

    return run
