"""Cutting channels out of a living model and its optimizers, all or nothing."""

from lightning_taylor.surgery.mirrors import Copy, find_copies, unreachable_copies
from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.surgery.snapshot import Snapshot

__all__ = ["Copy", "Snapshot", "find_copies", "prune_channels", "unreachable_copies"]
