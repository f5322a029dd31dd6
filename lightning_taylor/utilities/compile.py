"""The compiler of torch, where a model is compiled: what it made is forgotten, counted, or left alone for a while."""

from __future__ import annotations

import sys
from typing import Any, final

import torch

__all__ = [
    "EagerMode",
    "compiled_graphs",
    "forget_compiled",
]


def forget_compiled() -> None:
    """Let compiled code be compiled anew: for other widths, or for hooks that it does not look out for."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # and eight sizes of one frame are too many for its cache


@final
class EagerMode:
    """Lets code that was compiled run as it was written for a while; whatever the user had set comes back."""

    def __init__(self) -> None:
        self._stance: Any = None

    def enable(self) -> None:
        """Run nothing compiled from now on."""
        if self._stance is None and "torch._dynamo" in sys.modules:
            stance: Any = torch.compiler.set_stance("force_eager")
            if stance.prev.stance == "force_eager":
                stance.__exit__(None, None, None)  # somebody else's, who may well let go of it before
            else:
                self._stance = stance

    def disable(self) -> None:
        """Give back what was before ``enable``; a no-op without it."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None


def compiled_graphs() -> int:
    """How many graphs were compiled in this process so far."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    return int(dynamo.utils.counters["stats"]["unique_graphs"]) if dynamo else 0
