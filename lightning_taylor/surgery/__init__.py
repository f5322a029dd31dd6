"""Cutting channels out of a living model and its optimizers, all or nothing."""

from lightning_taylor.surgery.prune import prune_channels

__all__ = ["prune_channels"]
