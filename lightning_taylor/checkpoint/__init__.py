"""Checkpoints of any width: how shapes follow a state dict, and how a pruned one loads into the original class."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_taylor.checkpoint.load import PrunedCheckpointMixin, load_pruned

__all__ = ["PrunedCheckpointMixin", "load_pruned"]


def __getattr__(name: str) -> Any:
    # A command that only reads a checkpoint does not wait for Lightning, whose import takes seconds.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_taylor.checkpoint import load

    return getattr(load, name)
