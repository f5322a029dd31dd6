"""The network of a checkpoint, the widths it had before it was pruned, and what its ``forward`` takes."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import nn

from lightning_taylor.checkpoint.load import load_pruned
from lightning_taylor.checkpoint.widths import STATE_KEY, origin_of
from lightning_taylor.cli.checkpoints import read_checkpoint
from lightning_taylor.cli.classes import class_path_of, import_class
from lightning_taylor.cli.examples import find_inputs
from lightning_taylor.cli.failure import debugging, fail
from lightning_taylor.cli.fit_config import FitConfig
from lightning_taylor.cli.messages import nearest
from lightning_taylor.errors import PruningError
from lightning_taylor.export.verified_write import evaluating
from lightning_taylor.graph.serialize import follower_from_plain
from lightning_taylor.graph.types import Follower
from lightning_taylor.utilities.calls import Inputs

__all__ = ["Trained", "read_trained"]

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


@dataclass(frozen=True, eq=False)
class Trained:
    """What a command works on.

    Attributes:
        path: the checkpoint.
        module: its LightningModule, or the part of it that was asked for, on the CPU.
        part: the name of that part; "" for all of it.
        dense: name -> shape of the tensors that pruning may cut, when nothing was cut yet; empty if nobody knows.
        followers: the attributes of its modules that follow the widths.
        class_path: import path of the LightningModule's class.
        settings: its hyperparameters.
        inputs: what ``forward`` takes.
        source: where the inputs come from, in words.
    """

    path: str
    module: nn.Module
    part: str
    dense: dict[str, tuple[int, ...]]
    followers: tuple[Follower, ...]
    class_path: str
    settings: dict[str, Any]
    inputs: Inputs
    source: str

    @property
    def pruned(self) -> bool:
        """Whether anything is smaller than it was."""
        tensors = dict(chain(self.module.named_parameters(), self.module.named_buffers()))
        return any(tuple(tensors[name].shape) != shape for name, shape in self.dense.items() if name in tensors)


def read_trained(path: str, asked: argparse.Namespace, config: FitConfig | None) -> Trained:
    """Read a checkpoint as the options of a command say; any mistake ends the command.

    Args:
        path: the checkpoint.
        asked: the options of ``add_model_options``.
        config: the configuration that they name, if they name one.

    Raises:
        SystemExit: with 2, after a line on stderr.
    """
    checkpoint = read_checkpoint(path, trust=asked.trust)
    saved = dict(checkpoint.get("hyper_parameters", {}))
    class_path = class_path_of(asked.model, config, saved.get("_class_path"), path)
    module = _load(class_path, path, saved, config, trust=asked.trust)
    settings = {name: value for name, value in saved.items() if not name.startswith("_")}
    origin = origin_of(checkpoint) or {"dense": {}}
    dense = {name: tuple(shape) for name, shape in origin["dense"].items()}
    followers = tuple(follower_from_plain(plain) for plain in origin.get("followers", ()))
    part = asked.submodule or ""
    inputs, source = find_inputs(module, asked.input_shape, config, path, _called_with(checkpoint), part)
    if part:
        module, dense = _part(module, part), _below(part, dense)
        followers = tuple(_inside(part, followers))
    _try(module, inputs)
    return Trained(path, module, part, dense, followers, class_path, settings, inputs, source)


def _called_with(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the fit called, if the checkpoint says so."""
    state = checkpoint.get("callbacks", {}).get(STATE_KEY) or {}
    return list((state.get("report") or {}).get("called_with", ()))


def _inside(part: str, followers: Iterable[Follower]) -> Iterator[Follower]:
    """The followers in a part of the module, by their names there."""
    for f in followers:
        if f"{f.module}.".startswith(f"{part}.") and all(tensor.startswith(f"{part}.") for tensor, _ in f.axes):
            axis, *minus = ((tensor.removeprefix(f"{part}."), dim) for tensor, dim in f.axes)
            inside = f.module.removeprefix(part).removeprefix(".")
            yield replace(f, module=inside, axis=axis, minus=tuple(minus))


def _load(class_path: str, path: str, saved: dict[str, Any], config: FitConfig | None, *, trust: bool) -> nn.Module:
    kwargs: dict[str, Any] = {}
    if "_class_path" in saved:
        kwargs["_class_path"] = None  # Lightning would look for it among the subclasses of the class that it loads
    cls = import_class(class_path)
    if missing := _missing(cls, saved, config):
        kwargs.update(missing, _instantiator=INSTANTIATOR)
    try:
        return load_pruned(cls, path, map_location="cpu", weights_only=not trust, **kwargs)
    except (PruningError, ValueError, TypeError, RuntimeError) as error:
        if debugging():
            raise
        said = " ".join(str(error).split())
        hint = ""
        if "missing" in said and "argument" in said:
            hint = "; give --model config.yaml, or call save_hyperparameters() in the module's __init__"
        fail(2, f"{class_path} cannot be loaded from {path}: {said[:200]}{hint}")


def _missing(cls: Any, saved: Mapping[str, Any], config: FitConfig | None) -> dict[str, Any]:
    """The arguments that a checkpoint does not remember and a configuration does."""
    given = config.arguments if config is not None else {}
    if not saved:
        return given
    # What has a default may have been left out on purpose: a checkpoint needs no pretrained weights.
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: given[p.name] for p in parameters if p.default is p.empty and p.name in given.keys() - saved.keys()}


def _part(module: nn.Module, name: str) -> nn.Module:
    parts = dict(module.named_modules())
    if name not in parts:
        fail(2, f"--submodule {name}: {type(module).__name__} has no such part{nearest(name, list(parts)[1:])}")
    return parts[name]


def _below(part: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _try(module: nn.Module, inputs: Inputs) -> None:
    """A forward pass before anything else, since the most likely mistake is a wrong shape."""
    try:
        with evaluating(module):
            inputs.run(module)
    except Exception as error:
        if debugging():
            raise
        shapes = ", ".join("x".join(map(str, shape)) for shape in inputs.shapes)
        said = " ".join(str(error).split())[:200]
        parts = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
        hint = f"; or take a part of it, as in --submodule {parts[0]}" if isinstance(error, NotImplementedError) else ""
        fail(2, f"{type(module).__name__}.forward raised {type(error).__name__} on inputs {shapes}: {said}{hint}")
