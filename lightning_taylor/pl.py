"""The same for a Trainer of ``pytorch_lightning``, the other name of Lightning; ``pl`` is how people import it.

``lightning_taylor.TaylorPruning`` itself works in a ``pytorch_lightning.Trainer``. The classes here are, on top of
that, what ``pytorch_lightning`` calls a callback: its LightningCLI takes only those (``class_path:
lightning_taylor.pl.TaylorPruning``), and its Trainer lets only its own checkpoint callbacks come last. They work in a
Trainer of ``lightning.pytorch``, too, and their checkpoints are the same.

Example:
    >>> import pytorch_lightning as pl
    >>> from lightning_taylor.pl import TaylorPruning
    >>> trainer = pl.Trainer(callbacks=[TaylorPruning(target=0.5)], logger=False, accelerator="cpu")
"""

from __future__ import annotations

from typing import final

try:
    from pytorch_lightning import Callback
    from pytorch_lightning.callbacks import ModelCheckpoint
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"lightning_taylor.pl is for Trainers of pytorch_lightning, and there is no {missing.name}: "
        "pip install pytorch-lightning, or use lightning_taylor itself with Trainers of lightning.pytorch"
    ) from missing

from lightning_taylor.checkpoint.load import PrunedCheckpointMixin, load_pruned
from lightning_taylor.fit.best_checkpoint import PrunedModelCheckpoint as _PrunedModelCheckpoint
from lightning_taylor.fit.callback import TaylorPruning as _TaylorPruning

__all__ = ["PrunedCheckpointMixin", "PrunedModelCheckpoint", "TaylorPruning", "load_pruned"]


# A checkpoint finds a callback's state by the name of its class, so the names have to be the same.
@final
class TaylorPruning(_TaylorPruning, Callback):  # pyright: ignore[reportIncompatibleMethodOverride]
    """``lightning_taylor.TaylorPruning``, as a callback of ``pytorch_lightning``; the arguments are the same."""


@final
class PrunedModelCheckpoint(_PrunedModelCheckpoint, ModelCheckpoint):  # pyright: ignore[reportIncompatibleMethodOverride]
    """``lightning_taylor.PrunedModelCheckpoint``, as a ``ModelCheckpoint`` of ``pytorch_lightning``."""
