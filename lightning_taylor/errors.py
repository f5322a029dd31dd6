"""The error taxonomy: what went wrong, for which name, with which value, and the way out.

``ValueError`` is for a bad argument; these are for a model, an optimizer or a target that cannot be pruned.
Every message names the thing (a qualified module or tensor name), the value or shape, and what to do next.
"""

__all__ = [
    "ExportError",
    "NothingToPruneError",
    "OptimizerStateError",
    "PruningError",
    "TargetUnreachableError",
    "UncoupledChannelsError",
    "UnsupportedModelError",
]


class PruningError(RuntimeError):
    """Anything that stops a pruning; the model and its optimizers are as they were before the call."""


class UnsupportedModelError(PruningError):
    """The model as a whole cannot be traced: scripted, quantized, lazy, or its forward pass raises."""


class NothingToPruneError(PruningError):
    """The model was traced and every channel of it is frozen; the message lists the reasons."""


class UncoupledChannelsError(PruningError):
    """The graph and the model disagree: a tensor changed its shape, or is gone, since the trace."""


class OptimizerStateError(PruningError):
    """A state tensor of an optimizer follows its parameter in no way that is understood."""


class TargetUnreachableError(PruningError):
    """The target asks for less than what remains when every group is at its minimum."""


class ExportError(PruningError):
    """A model cannot be written in a format, or what was written computes something else; no file was left."""
