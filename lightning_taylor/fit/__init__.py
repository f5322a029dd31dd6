"""Everything that speaks to a Trainer: the callback, what it does in which hook, and what a fit reports."""

from lightning_taylor.fit.best_checkpoint import PrunedModelCheckpoint
from lightning_taylor.fit.callback import TaylorPruning

__all__ = ["PrunedModelCheckpoint", "TaylorPruning"]
