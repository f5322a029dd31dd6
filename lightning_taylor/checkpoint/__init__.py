"""Checkpoints of any width: how shapes follow a state dict, and how a pruned one loads into the original class."""

from lightning_taylor.checkpoint.load import PrunedCheckpointMixin, load_pruned

__all__ = ["PrunedCheckpointMixin", "load_pruned"]
