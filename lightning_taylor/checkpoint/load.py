"""Loading what was pruned: a model takes the shapes of the checkpoint before its values are copied in.

Lightning restores the model between ``setup`` and the creation of the optimizers, and calls the callbacks' own load
hooks only afterwards. So the shapes are fitted by a hook of torch's ``load_state_dict`` itself, placed in ``setup``;
optimizers and averaged copies then find the right sizes. The shapes come from the state dict, both ways: the best
checkpoint may be larger than the model in memory.

Which dimensions may differ travels with the state dict, as metadata, and with the callback's state. Every other
difference means that the checkpoint belongs to another model, and is an error that lists it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from torch import nn

from lightning_taylor.checkpoint.unasked_imports import saved_arguments, unasked_imports
from lightning_taylor.checkpoint.widths import fit_shapes, origin_of
from lightning_taylor.utilities.lightning_names import either

__all__ = [
    "PrunedCheckpointMixin",
    "load_asked",
    "load_pruned",
]

Module = TypeVar("Module", bound=LightningModule)


def load_pruned(cls: type[Module], checkpoint_path: Any, **kwargs: Any) -> Module:
    """``cls.load_from_checkpoint`` for a checkpoint whose model was pruned.

    Also takes checkpoints that were not pruned, and those saved with ``save_weights_only``. A file is read with
    ``weights_only=True``, and the classes that a LightningCLI noted in it are built only if they are of the package of
    ``cls``, of torch or torchvision, or imported already; ``weights_only=False`` trusts whoever wrote the file.

    Args:
        cls: the class that was trained.
        checkpoint_path: the file.
        **kwargs: as for ``load_from_checkpoint``: ``map_location``, ``strict``, the arguments of ``cls``.

    Returns:
        An instance of ``cls`` with the widths and values of the checkpoint, on the checkpoint's device.

    Raises:
        UncoupledChannelsError: if the checkpoint belongs to another model; the message lists the differences.
        ValueError: if the checkpoint names other classes to be built.
        TypeError: if ``cls`` is no LightningModule, or needs arguments that the checkpoint does not remember.
    """
    _check_class(cls)
    if kwargs.get("weights_only") is not False:
        # What the caller passes replaces what the checkpoint says.
        arguments = {n: v for n, v in saved_arguments(checkpoint_path).items() if n not in kwargs}
        if unasked := unasked_imports(arguments, [cls.__module__.partition(".")[0]]):
            raise ValueError(
                f"{checkpoint_path} names {', '.join(unasked)}, which loading it would import and call: import what "
                "you know before, or pass weights_only=False if you trust who wrote the file"
            )
    try:
        return load_asked(cls, checkpoint_path, **kwargs)
    except TypeError as error:
        if not (missing := _missing(cls, kwargs)) or "missing" not in str(error):
            raise
        raise TypeError(
            f"{error}: {checkpoint_path} does not say with which arguments the model was made. Pass them, "
            f"load_pruned({cls.__name__}, path, {', '.join(f'{name}=...' for name in missing)}), or call "
            f"self.save_hyperparameters() in {cls.__name__}.__init__ before the next fit"
        ) from error


def _missing(cls: type, given: Mapping[str, Any]) -> list[str]:
    """Return the arguments that a class cannot do without, but for those that are given."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    every = inspect.signature(cls).parameters.values()
    return [p.name for p in every if p.kind in named and p.default is p.empty and p.name not in given]


def load_asked(cls: type[Module], checkpoint_path: Any, **kwargs: Any) -> Module:
    """Load as ``load_pruned``, whatever classes the checkpoint names: whoever calls this has looked."""

    def on_load_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        cls.on_load_checkpoint(self, checkpoint)
        _fit_to(self, checkpoint)

    # A subclass for the time of the loading: to patch the user's class would be seen by other threads.
    loading: Any = type(cls.__name__, (cls,), {"on_load_checkpoint": on_load_checkpoint, "__module__": cls.__module__})
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls.__init__).parameters.values()):
        # LightningCLI saves the class's path, and Lightning would look for it among the subclasses of this one.
        kwargs.setdefault("_class_path", None)
    module = loading.load_from_checkpoint(checkpoint_path, **kwargs)
    module.__class__ = cls
    return module


def _check_class(cls: object) -> None:
    if not (isinstance(cls, type) and issubclass(cls, either(LightningModule))):
        raise TypeError(f"load_pruned takes a LightningModule class, got {cls!r}")


class PrunedCheckpointMixin:
    """Makes a LightningModule itself take pruned weights; name it first among the bases.

    Its ``load_from_checkpoint`` and ``load_state_dict`` then fit its shapes to what comes. ``load_pruned`` does the
    same for one loading, without it. Strategies that train in child processes of this one (``ddp_spawn``,
    ``ddp_fork``, ``ddp_notebook``) need it: they load what was trained into the module here, with nothing in between.

    Example:
        >>> import lightning as L
        >>> class Net(PrunedCheckpointMixin, L.LightningModule):
        ...     pass
    """

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by Lightning to let the model look at a checkpoint: fit the shapes before the values come."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        assert isinstance(self, nn.Module)
        _fit_to(self, checkpoint)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As ``nn.Module.load_state_dict``, of any widths that the state dict itself describes."""
        assert isinstance(self, nn.Module)
        _fit_to(self, {"state_dict": state_dict})
        return super().load_state_dict(state_dict, *args, **kwargs)  # type: ignore[misc]


def _fit_to(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    widths = origin_of(checkpoint)
    if widths is not None and widths.dims:
        fit_shapes(module, checkpoint["state_dict"], widths)
