"""Which attention classes lose heads: the stock class, ours that runs it, and the name of its output projection.

A row is added here when a class is supported; its forward pass with any number of heads is in ``attention`` or
``window_attention``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from lightning_taylor.modules.attention import HEAD_WIDTH, PrunedMultiheadAttention, scale_kept

__all__ = [
    "hands_queries_on",
    "heads_left",
    "headwise",
    "is_stock",
    "projection_of",
]

WINDOWS = "lightning_taylor.modules.window_attention"


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
