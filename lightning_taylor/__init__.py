"""Prune convolutional networks while they train, by first-order Taylor scores.

Example:
    >>> import lightning as L
    >>> from lightning_taylor import TaylorPruning
    >>> trainer = L.Trainer(callbacks=[TaylorPruning(target=0.5)], logger=False, accelerator="cpu")
"""

from lightning_taylor.best import PrunedModelCheckpoint
from lightning_taylor.callback import TaylorPruning
from lightning_taylor.checkpoint import PrunedCheckpointMixin, load_pruned
from lightning_taylor.errors import (
    NothingToPruneError,
    OptimizerStateError,
    PruningError,
    TargetUnreachableError,
    UncoupledChannelsError,
    UnsupportedModelError,
)
from lightning_taylor.graph.channels import ChannelGraph, ChannelGroup
from lightning_taylor.graph.trace import trace_channels
from lightning_taylor.plan import Gradual, Iterative, OneShot, Target
from lightning_taylor.plan.guard import Guard
from lightning_taylor.scores import Criterion, Random, Taylor, TaylorBatch, WeightMagnitude
from lightning_taylor.surgery import prune_channels

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Criterion",
    "Gradual",
    "Guard",
    "Iterative",
    "NothingToPruneError",
    "OneShot",
    "OptimizerStateError",
    "PrunedCheckpointMixin",
    "PrunedModelCheckpoint",
    "PruningError",
    "Random",
    "Target",
    "TargetUnreachableError",
    "Taylor",
    "TaylorBatch",
    "TaylorPruning",
    "UncoupledChannelsError",
    "UnsupportedModelError",
    "WeightMagnitude",
    "load_pruned",
    "prune_channels",
    "trace_channels",
]

__version__ = "0.1.0"
