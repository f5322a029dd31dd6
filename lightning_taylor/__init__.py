"""Prune convolutional networks while they train, by first-order Taylor scores.

Example:
    >>> import lightning as L
    >>> from lightning_taylor import TaylorPruning
    >>> trainer = L.Trainer(callbacks=[TaylorPruning(target=0.5)], logger=False, accelerator="cpu")
"""

from lightning_taylor.checkpoint.load import PrunedCheckpointMixin, load_pruned
from lightning_taylor.criteria.activations import ActivationMean, ActivationStd, APoZ
from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.baselines import Random, WeightMagnitude
from lightning_taylor.criteria.combined import Combined
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.errors import (
    NothingToPruneError,
    OptimizerStateError,
    PruningError,
    TargetUnreachableError,
    UncoupledChannelsError,
    UnsupportedModelError,
)
from lightning_taylor.export.onnx import export_onnx
from lightning_taylor.export.program import export_program
from lightning_taylor.export.state_dict import export_state_dict
from lightning_taylor.fit.best_checkpoint import PrunedModelCheckpoint
from lightning_taylor.fit.callback import TaylorPruning
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import ChannelGroup
from lightning_taylor.modules.attributes import register_attributes
from lightning_taylor.plan.guard import Guard
from lightning_taylor.plan.schedule import Gradual, Iterative, OneShot
from lightning_taylor.plan.target import Target
from lightning_taylor.report.inspection import Inspection, inspect_model
from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.trace.api import trace_channels

__all__ = [
    "OBD",
    "APoZ",
    "ActivationMean",
    "ActivationStd",
    "ChannelGraph",
    "ChannelGroup",
    "Combined",
    "Criterion",
    "Gradual",
    "Guard",
    "Inspection",
    "Iterative",
    "MutualInformation",
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
    "export_onnx",
    "export_program",
    "export_state_dict",
    "inspect_model",
    "load_pruned",
    "prune_channels",
    "register_attributes",
    "trace_channels",
]

__version__ = "0.1.0"
