"""Attention modules, opened up for as long as their channels are scored.

The stock code of ``nn.MultiheadAttention`` and of torchvision's window attentions hands the weight of the output
projection to a function, so that no hook on it ever runs. Their headwise classes (``graph.heads``) call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import nn

from lightning_taylor.modules.attention import hand_queries_to
from lightning_taylor.modules.attention_registry import headwise, projection_of
from lightning_taylor.modules.attributes import follow_shapes
from lightning_taylor.scores.readers import Reader

__all__ = ["OpenHeads"]


@final
class OpenHeads:
    """Lets attention modules run their headwise class until it is closed.

    Args:
        model: changed in place; values agree to rounding.
        watched: the layers that are to be hooked, by name; modules around other layers stay as they are.

    Example:
        >>> model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
        >>> heads = OpenHeads(model, {"attention.out_proj": Reader("attention.out_proj", nn.Identity(), 8, None)})
        >>> type(model["attention"]).__name__
        'PrunedMultiheadAttention'
        >>> heads.close()
        >>> type(model["attention"]).__name__
        'MultiheadAttention'
    """

    def __init__(self, model: nn.Module, watched: Mapping[str, Reader]) -> None:
        self._opened: list[nn.Module] = []
        for name, module in model.named_modules():
            own_class, projection = headwise(module), projection_of(module)
            if own_class is not None and f"{name}.{projection}".lstrip(".") in watched:
                self._opened.append(module)
                module.__class__ = own_class
            if (queries := watched.get(f"{name}:queries")) is not None:
                hand_queries_to(module, queries.module)

    def close(self) -> None:
        """Give every module its class back, unless it has lost heads meanwhile."""
        for module in self._opened:
            hand_queries_to(module, None)
            follow_shapes(module)
        self._opened.clear()
