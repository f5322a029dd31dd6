"""Prune convolutional networks while they train, by first-order Taylor scores.

Example:
    >>> import lightning as L
    >>> from lightning_taylor import TaylorPruning
    >>> trainer = L.Trainer(callbacks=[TaylorPruning(target=0.5)], logger=False, accelerator="cpu")
"""

from lightning_taylor.callback import TaylorPruning as TaylorPruning
from lightning_taylor.errors import NothingToPruneError as NothingToPruneError
from lightning_taylor.errors import OptimizerStateError as OptimizerStateError
from lightning_taylor.errors import PruningError as PruningError
from lightning_taylor.errors import TargetUnreachableError as TargetUnreachableError
from lightning_taylor.errors import UncoupledChannelsError as UncoupledChannelsError
from lightning_taylor.errors import UnsupportedModelError as UnsupportedModelError
from lightning_taylor.graph.channels import ChannelGraph as ChannelGraph
from lightning_taylor.graph.channels import ChannelGroup as ChannelGroup
from lightning_taylor.graph.trace import trace_channels as trace_channels
from lightning_taylor.plan import Gradual as Gradual
from lightning_taylor.plan import Iterative as Iterative
from lightning_taylor.plan import OneShot as OneShot
from lightning_taylor.plan import Target as Target
from lightning_taylor.scores import Criterion as Criterion
from lightning_taylor.scores import Random as Random
from lightning_taylor.scores import Taylor as Taylor
from lightning_taylor.scores import TaylorBatch as TaylorBatch
from lightning_taylor.scores import WeightMagnitude as WeightMagnitude
from lightning_taylor.surgery import prune_channels as prune_channels

__version__ = "0.1.0"
