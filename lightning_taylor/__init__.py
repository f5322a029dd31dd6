"""Prune convolutional networks while they train, by first-order Taylor scores.

What most fits need is here. More is on second pages, each with a short list of its own: ``criteria``, ``plan``,
``report``, ``export``, ``checkpoint``, ``fit``, ``errors`` and ``extend``.

Example:
    >>> import lightning as L
    >>> from lightning_taylor import TaylorPruning
    >>> trainer = L.Trainer(callbacks=[TaylorPruning(target=0.5)], logger=False, accelerator="cpu")
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_taylor.checkpoint.load import PrunedCheckpointMixin as PrunedCheckpointMixin
    from lightning_taylor.checkpoint.load import load_pruned
    from lightning_taylor.criteria.activations import ActivationMean, ActivationStd, APoZ
    from lightning_taylor.criteria.base import Criterion
    from lightning_taylor.criteria.baselines import Random, WeightMagnitude
    from lightning_taylor.criteria.combined import Combined as Combined
    from lightning_taylor.criteria.mutual_information import MutualInformation
    from lightning_taylor.criteria.obd import OBD
    from lightning_taylor.criteria.taylor import Taylor
    from lightning_taylor.criteria.taylor_batch import TaylorBatch
    from lightning_taylor.errors import NothingToPruneError as NothingToPruneError
    from lightning_taylor.errors import OptimizerStateError as OptimizerStateError
    from lightning_taylor.errors import PruningError as PruningError
    from lightning_taylor.errors import TargetUnreachableError as TargetUnreachableError
    from lightning_taylor.errors import UncoupledChannelsError as UncoupledChannelsError
    from lightning_taylor.errors import UnsupportedModelError as UnsupportedModelError
    from lightning_taylor.export.onnx import export_onnx as export_onnx
    from lightning_taylor.export.program import export_program as export_program
    from lightning_taylor.export.state_dict import export_state_dict as export_state_dict
    from lightning_taylor.fit.best_checkpoint import PrunedModelCheckpoint as PrunedModelCheckpoint
    from lightning_taylor.fit.callback import TaylorPruning
    from lightning_taylor.graph.channel_graph import ChannelGraph
    from lightning_taylor.graph.types import ChannelGroup as ChannelGroup
    from lightning_taylor.modules.attributes import register_attributes as register_attributes
    from lightning_taylor.plan.guard import Guard
    from lightning_taylor.plan.schedule import Gradual, Iterative, OneShot
    from lightning_taylor.plan.target import Target
    from lightning_taylor.report.inspection import Inspection as Inspection
    from lightning_taylor.report.inspection import inspect_model as inspect_model
    from lightning_taylor.surgery.prune import prune_channels
    from lightning_taylor.trace.api import trace_channels

__all__ = [
    "OBD",
    "APoZ",
    "ActivationMean",
    "ActivationStd",
    "ChannelGraph",
    "Criterion",
    "Gradual",
    "Guard",
    "Iterative",
    "MutualInformation",
    "OneShot",
    "Random",
    "Target",
    "Taylor",
    "TaylorBatch",
    "TaylorPruning",
    "WeightMagnitude",
    "load_pruned",
    "prune_channels",
    "trace_channels",
]

__version__ = "0.1.0"

_NAMES = {
    "checkpoint.load": "PrunedCheckpointMixin load_pruned",
    "criteria.activations": "ActivationMean ActivationStd APoZ",
    "criteria.base": "Criterion",
    "criteria.baselines": "Random WeightMagnitude",
    "criteria.combined": "Combined",
    "criteria.mutual_information": "MutualInformation",
    "criteria.obd": "OBD",
    "criteria.taylor": "Taylor",
    "criteria.taylor_batch": "TaylorBatch",
    "errors": "NothingToPruneError OptimizerStateError PruningError TargetUnreachableError UncoupledChannelsError "
    "UnsupportedModelError",
    "export.onnx": "export_onnx",
    "export.program": "export_program",
    "export.state_dict": "export_state_dict",
    "fit.best_checkpoint": "PrunedModelCheckpoint",
    "fit.callback": "TaylorPruning",
    "graph.channel_graph": "ChannelGraph",
    "graph.types": "ChannelGroup",
    "modules.attributes": "register_attributes",
    "plan.guard": "Guard",
    "plan.schedule": "Gradual Iterative OneShot",
    "plan.target": "Target",
    "report.inspection": "Inspection inspect_model",
    "surgery.prune": "prune_channels",
    "trace.api": "trace_channels",
}
"""Module -> what it lends to this page; the same as above, for when the program runs."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

_PAGES = ("checkpoint", "criteria", "errors", "export", "extend", "fit", "plan", "report")


def __getattr__(name: str) -> Any:
    # Only what is asked for is imported: the console script answers --version without torch.
    if name in _PAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


if "lightning.pytorch.cli" in sys.modules or "pytorch_lightning.cli" in sys.modules:
    # LightningCLI looks for short class names (`class_path: TaylorPruning`) among the classes that are loaded.
    import_module(f"{__name__}.fit")
