"""The network of a checkpoint, the widths it had before it was pruned, and what its ``forward`` takes."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_taylor.checkpoint.load import load_asked
from lightning_taylor.checkpoint.unasked_imports import arguments_in, texts_in, unasked_imports
from lightning_taylor.checkpoint.widths import Widths, origin_of
from lightning_taylor.cli.checkpoint_file import read_checkpoint, state_in
from lightning_taylor.cli.exit import debugging, fail, nearest
from lightning_taylor.cli.importing import without_fits
from lightning_taylor.errors import PruningError
from lightning_taylor.export.verified_write import evaluating
from lightning_taylor.graph.types import LinkedAttribute
from lightning_taylor.utilities.call_template import call_like
from lightning_taylor.utilities.calls import Inputs
from lightning_taylor.utilities.lightning_names import either

if TYPE_CHECKING:
    from lightning_taylor.cli.config import FitConfig

__all__ = [
    "Trained",
    "class_path_of",
    "find_inputs",
    "giving_batches",
    "import_class",
    "random_inputs",
    "read_trained",
    "validation_loader",
]

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
    followers: tuple[LinkedAttribute, ...]
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
    saved, state = arguments_in(checkpoint), state_in(checkpoint, path)
    class_path = class_path_of(asked.model, config, saved.get("_class_path"), path, state.model if state else "")
    module = _load(class_path, path, saved, config, trust=asked.trust)
    settings = {name: value for name, value in saved.items() if not name.startswith("_")}
    origin = origin_of(checkpoint) or Widths({}, {})
    dense, followers = dict(origin.dense), origin.followers
    called_with = state.report.called_with if state else []
    part = asked.submodule or ""
    inputs, source = find_inputs(module, asked.input_shape, config, path, called_with, part)
    if part:
        module, dense = _part(module, part), _below(part, dense)
        followers = tuple(_inside(part, followers))
    _try(module, inputs)
    return Trained(path, module, part, dense, followers, class_path, settings, inputs, source)


def _inside(part: str, followers: Iterable[LinkedAttribute]) -> Iterator[LinkedAttribute]:
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
    named = [class_path, *texts_in(config.content if config else {})]
    unasked = unasked_imports({**saved, **kwargs}, {text.partition(".")[0] for text in named})
    if unasked and not trust:
        fail(2, f"{path} names {', '.join(unasked)}, to be imported and called; if you trust who wrote it, add --trust")
    try:
        return load_asked(cls, path, map_location="cpu", weights_only=not trust, **kwargs)
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


def class_path_of(model: str | None, config: FitConfig | None, saved: str | None, path: str, trained: str = "") -> str:
    """Where the class is to be found: named by the user, or one of our own.

    Args:
        model: what the user named.
        config: the configuration of the fit, if the user named one.
        saved: what the hyperparameters in the checkpoint say.
        path: the checkpoint.
        trained: what the callback's state in the checkpoint says; good for advice only.
    """
    if config is not None:
        from lightning_taylor.cli.classes import missing_class

        return config.class_path or saved or missing_class(config.name, "model", known=trained)
    if model is not None:
        return model
    # What a checkpoint names is not imported: a file from elsewhere could so run any module that is installed.
    if saved is None or not saved.startswith("lightning_taylor."):
        known = f" (it says {saved or trained})" if saved or trained else ""
        named = saved or trained or "package.module.Class"
        fail(2, f"{path}: of which class?{known} Give --model {named} or a config.yaml")
    return saved


def import_class(class_path: str) -> type[LightningModule]:
    """Import the LightningModule class that ``--model`` names; whatever else it names ends the command."""
    package, _, name = class_path.rpartition(".")
    if not package or not all(part.isidentifier() for part in class_path.split(".")):
        fail(2, f"--model {class_path}: give its import path, as in my_project.nets.{name or 'Net'}")
    try:
        with without_fits():
            module = import_module(package)
    except ImportError as error:
        if not class_path.startswith(error.name or " "):
            raise
        fail(2, f"--model {class_path}: no module is called {error.name!r}")
    if not hasattr(module, name):
        names = [n for n, value in vars(module).items() if isinstance(value, type)]
        fail(2, f"--model {class_path}: {module.__name__} has no {name!r}{nearest(name, names)}")
    value = getattr(module, name)
    kinds = either(LightningModule)
    if not isinstance(value, type) or not issubclass(value, kinds) or value in kinds:
        what = value.__name__ if isinstance(value, type) else f"a {type(value).__name__}"
        fail(2, f"--model {class_path}: that is {what}; give a class that derives from LightningModule")
    return value


MOST_EXAMPLES = 8


def random_inputs(shapes: Sequence[Sequence[int]]) -> Inputs:
    """Normally distributed numbers, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return Inputs(tuple(torch.randn(*shape, generator=generator) for shape in shapes))


def find_inputs(
    module: Any,
    shapes: Sequence[Sequence[int]] | None,
    config: FitConfig | None,
    path: str,
    called_with: Sequence[Mapping[str, Any]] = (),
    part: str = "",
) -> tuple[Inputs, str]:
    """Inputs, and in words where they come from.

    Args:
        module: a LightningModule.
        shapes: of random inputs, if asked for.
        config: the configuration of a fit, if there is one.
        path: the checkpoint, beside whose folder a configuration may lie.
        called_with: what the fit of the checkpoint called and with which shapes, as ``call_template`` has it.
        part: the part of the module that is asked for; "" for all of it.
    """
    if shapes:
        return random_inputs(shapes), "random numbers"
    if config is not None and config.has_data:
        return _first_batch(module, config)
    example = getattr(module, "example_input_array", None)
    if example is None and called_with:
        # A training step that calls `self.net(x)` mostly has a `forward` that does the same.
        by_module = {call["module"]: call for call in reversed(called_with)}
        call = call_like(by_module.get(part, called_with[0]), torch.Generator().manual_seed(0))
        return Inputs(call.args, call.kwargs), "random numbers of the shapes that the fit had"
    if example is None:
        beside = Path(path).parent.parent / "config.yaml"
        or_config = f", or --model {beside}" if beside.is_file() else ""
        fail(2, f"what does {type(module).__name__}.forward take? Give --input-shape, as in 1 3 224 224{or_config}")
    return Inputs.of(example), "the module's example_input_array"


def _first_batch(module: nn.Module, config: FitConfig) -> tuple[Inputs, str]:
    """A few examples of what the data module of a configuration gives to validation."""
    loader, name = validation_loader(config, "--input-shape")
    with giving_batches(name, "--input-shape"):
        batch = next(iter(loader))
    known = inspect.signature(module.forward).parameters
    if isinstance(batch, Mapping):
        batch = {key: value for key, value in batch.items() if key in known}
    elif isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor) and not (isinstance(batch, dict) and batch):
        fail(2, f"{name}'s batches do not tell what forward takes: give --input-shape")
    inputs = Inputs.of(batch)
    return inputs.with_batch(min(inputs.batch, MOST_EXAMPLES)), f"examples of {name}'s validation set"


def validation_loader(config: FitConfig, otherwise: str) -> tuple[Any, str]:
    """What the data module of a configuration validates on, and the name of its class.

    Args:
        config: one that has data.
        otherwise: the option that makes it needless.

    Raises:
        SystemExit: with 2, after a line on stderr, if the data module raises anything.
    """
    data = config.data_module()
    name = type(data).__name__
    with giving_batches(name, otherwise):
        data.prepare_data()
        data.setup("validate")
        return data.val_dataloader(), name


@contextmanager
def giving_batches(name: str, otherwise: str) -> Iterator[None]:
    """End the command, with 2 and a line on stderr, if a data module raises anything."""
    try:
        yield
    except Exception as error:
        if debugging():
            raise
        fail(2, f"{name} gave no batch ({type(error).__name__}: {' '.join(str(error).split())}): give {otherwise}")
