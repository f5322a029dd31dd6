"""A state dict with what it takes to load it where nobody has heard of pruning."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.export.verified_write import Candidate, Exported, ExportError, keep, uncompiled
from lightning_taylor.modules.attribute_paths import numbers_in, split_path
from lightning_taylor.modules.attributes import rule_of
from lightning_taylor.modules.model_copy import private_copy
from lightning_taylor.utilities.calls import Inputs

__all__ = [
    "LOADER",
    "architecture_record",
    "check_own_code",
    "export_state_dict",
    "files_of",
    "layers_and_shapes",
    "loader_text",
    "torchvision_builders",
]

Builder = tuple[str | None, Mapping[str, Any]]


def export_state_dict(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    builder: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
) -> Exported:
    r"""Write a model's state dict, a record of its architecture, and the loader that rebuilds it from the two.

    For ``net.pt`` there are, beside it, ``net.json`` and ``load_net.py``. The loader needs torch and whatever builds
    the unpruned network (torchvision, for its models), but not this package::

        def load(path):  # of the record
            record = json.loads(Path(path).read_text())
            package, _, name = record["builder"].rpartition(".")
            model = getattr(importlib.import_module(package), name)(**record["arguments"])
            for layer, attributes in record["layers"].items():
                own = vars(model.get_submodule(layer))
                own.update({key: like(own.get(key), value) for key, value in attributes.items()})
            tensors = torch.load(Path(path).with_name(record["weights"]), weights_only=True)
            for name, tensor in tensors.items():
                layer, _, attribute = name.rpartition(".")
                getattr(model.get_submodule(layer), attribute).data = tensor
            model.load_state_dict(tensors)
            return model.eval()

    Here ``like`` makes tuples of lists where the dense network has tuples, since JSON knows none.

    The files are kept only if what this very loader builds gives what the model gives on ``example_inputs``: no
    output may differ by more than ``tolerance`` times the largest absolute value of that output.

    Args:
        model: any module; its modes, buffers and hooks are left as they are.
        example_inputs: a tensor, a tuple of positional arguments or a dict of arguments by name.
        path: the file of the state dict, on the CPU, which ``torch.load(weights_only=True)`` reads; its folder is
            made. Files of these names are replaced.
        builder: what makes the unpruned network: the import path of a function or class, or the name of a model in
            torchvision. For torchvision's own models it is found. Without one, the loader is ``load(model)`` and
            takes the unpruned network from its caller; then the files are compared by means of a copy of ``model``.
        arguments: what the builder is called with, in types that JSON has.
        tolerance: see above; by default 1e-4 in float32, 1e-8 in float64, 1e-2 in float16 and 5e-2 in bfloat16.

    Returns:
        The file of the state dict, the largest difference, the size of all three and the shapes they were compared
        on.

    Raises:
        ExportError: if the builder does not make this network, or an attention lost heads, which the code of its
            library cannot run: no file is left then.
        ValueError: if ``example_inputs`` has no tensor, or no example; if ``path`` ends like one of the other two
            files; if ``arguments`` come without a builder or cannot be written as JSON.

    Example:
        >>> import tempfile, torchvision
        >>> net = torchvision.models.squeezenet1_1(num_classes=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export_state_dict(net, torch.rand(1, 3, 32, 32), f"{folder}/net.pt")
        ...     sorted(file.name for file in exported.path.parent.iterdir())
        ['load_net.py', 'net.json', 'net.pt']
        >>> exported.max_difference
        0.0
    """
    model, path, inputs = uncompiled(model), Path(path), Inputs.of(example_inputs)
    if path.suffix in (".json", ".py"):
        raise ValueError(
            f"{path.name} is for the tensors, and the record and the loader get .json and .py: name it .pt"
        )
    check_own_code(model)
    builders = _builders(model, builder, dict(arguments or {}))
    candidates = [_candidate(model, inputs, path, found) for found in builders]
    return keep(model, path, candidates, tolerance)


def check_own_code(model: nn.Module) -> None:
    """Raise an ExportError if a module runs code of this package, which no file of numbers can tell."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("lightning_taylor.modules"):
            raise ExportError(
                f"{name!r} lost attention heads and runs {type(module).__name__} of this package, so nothing else "
                "can rebuild it: use export_onnx or export_program"
            )


def _builders(model: nn.Module, builder: str | None, arguments: dict[str, Any]) -> list[Builder]:
    if builder is None:
        if arguments:
            raise ValueError(f"arguments={arguments} are for a builder: give builder= as well")
        return [*torchvision_builders(model), (None, {})]
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise ValueError(f"arguments={arguments} cannot be written as JSON: {error}") from error
    if "." in builder:
        return [(builder, arguments)]
    return [("torchvision.models.get_model", {"name": builder, "weights": None, **arguments})]


def files_of(path: Path) -> tuple[Path, Path, Path]:
    """Return the paths of the three files that are written for the first.

    Example:
        >>> [file.name for file in files_of(Path("net-2.pt"))]
        ['net-2.pt', 'net-2.json', 'load_net_2.py']
    """
    loader = f"load_{re.sub(r'[^0-9A-Za-z]+', '_', path.stem)}.py"
    return path, path.with_name(f"{path.stem}.json"), path.with_name(loader)


def _candidate(model: nn.Module, inputs: Inputs, path: Path, builder: Builder) -> Candidate:
    _, record_name, loader_name = (file.name for file in files_of(path))

    def write(folder: Path) -> Sequence[Path]:
        state = {n: t.detach().cpu() if isinstance(t, Tensor) else t for n, t in model.state_dict().items()}
        torch.save(state, folder / path.name)
        record = architecture_record(model, path.name, *builder)
        (folder / record_name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / loader_name).write_text(loader_text(record_name, builder[0]), encoding="utf-8")
        return [folder / path.name, folder / record_name, folder / loader_name]

    def load(file: Path) -> Callable[[Inputs], Any]:
        # The text that was written, not a function that resembles it.
        loader = file.with_name(loader_name)
        names: dict[str, Any] = {"__file__": str(loader)}
        exec(compile(loader.read_text(encoding="utf-8"), str(loader), "exec"), names)
        with torch.random.fork_rng(devices=[]):
            loaded = names["load"]() if builder[0] else names["load"](_blank(model))
        loaded.to(inputs.tensors[0].device)

        def run(given: Inputs) -> Any:
            with torch.no_grad():
                return given.run(loaded)

        return run

    return Candidate(write, load, [inputs], dynamic_batch=True)


def _blank(model: nn.Module) -> nn.Module:
    """Make a copy that has forgotten its values: those that come back come from the file.

    Not those of buffers that no file holds, which the class that is built anew makes by itself.
    """
    copy = private_copy(model)
    with torch.no_grad():
        for tensor in copy.state_dict().values():
            if isinstance(tensor, Tensor):
                tensor.zero_()
    return copy


LOADER = '''\
"""Loads a pruned network: torch and what builds the dense network are all it needs."""

import importlib
import json
from pathlib import Path

import torch


def like(old, new):
    """What JSON made of an attribute, with tuples where the dense network has them."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: like(old.get(key), value) for key, value in new.items()}
    if isinstance(old, (list, tuple)) and isinstance(new, list):
        return type(old)(like(one, other) for one, other in zip(old, new))
    return new


def load(path=RECORD):
    record = json.loads(Path(path).read_text())
    package, _, name = record["builder"].rpartition(".")
    model = getattr(importlib.import_module(package), name)(**record["arguments"])
    for layer, attributes in record["layers"].items():
        own = vars(model.get_submodule(layer))
        own.update({key: like(own.get(key), value) for key, value in attributes.items()})
    tensors = torch.load(Path(path).with_name(record["weights"]), weights_only=True)
    for name, tensor in tensors.items():
        layer, _, attribute = name.rpartition(".")
        getattr(model.get_submodule(layer), attribute).data = tensor
    model.load_state_dict(tensors)
    return model.eval()

'''
"""The loader that is written beside the weights; ``RECORD`` stands for the path of the record."""

GET_MODEL = "torchvision.models.get_model"

VARIANTS: tuple[dict[str, Any], ...] = ({}, {"aux_loss": True}, {"aux_logits": False}, {"aux_logits": True})
"""Arguments of torchvision's builders that change which modules there are."""


def architecture_record(
    model: nn.Module, weights: str, builder: str | None, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What the loader reads, in types that JSON has.

    Args:
        model: the pruned network.
        weights: name of the file with its state dict.
        builder: import path of what builds the dense network; None if only the user can.
        arguments: what it is called with.

    Returns:
        ``layers`` maps the name of every module with parameters, or of a class that is not torch's, to its attributes
        that are whole numbers or truth values, or lists, tuples (which become lists) and dicts with whole numbers, and
        to its widths; ``tensors`` every name of the state dict to its shape.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
        >>> architecture_record(net, "net.pt", None, {})["layers"]
        {'0': {'in_channels': 3, 'out_channels': 5, 'transposed': False, 'groups': 1}, '1': {'num_features': 5, ...}}
    """
    return {
        "format": "lightning-taylor architecture 1",
        "torch": torch.__version__,
        "builder": builder,
        "arguments": dict(arguments),
        "weights": weights,
        **layers_and_shapes(model),
    }


def layers_and_shapes(model: nn.Module) -> dict[str, Any]:
    """Return what an architecture record says of a network, in types that JSON has: ``layers`` and ``tensors``."""
    return {
        "layers": dict(_layers(model)),
        "tensors": {name: list(t.shape) for name, t in model.state_dict().items() if isinstance(t, Tensor)},
    }


def _layers(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in model.named_modules():
        holds_any = next(chain(module.parameters(), module.buffers()), None) is not None
        if not holds_any and type(module).__module__.startswith("torch."):
            continue
        # Numbers may be widths that the user's own code reads (num_heads), and truth values what it chose by a width
        # (whether a block of MobileNet adds its input).
        plain = {k: v for k, v in vars(module).items() if type(v) in (int, bool) and k[0] != "_"}
        plain.pop("training")
        rule = rule_of(module) if holds_any else None
        followed = dict(rule(module, {})) if rule else _with_numbers(module)
        followed.pop("__class__", None)
        if attributes := {**plain, **followed}:
            yield name, attributes


def _with_numbers(module: nn.Module) -> dict[str, Any]:
    """The lists, tuples and dicts with whole numbers that the user's own module may take its channels apart by."""
    numbers = {split_path(path)[0] for path in numbers_in(module) if "[" in path}
    return {name: value for name, value in vars(module).items() if name in numbers and _is_data(value)}


def _is_data(value: object) -> bool:
    """Return whether JSON has everything that is in a value, but for tuples."""
    if type(value) is dict:
        return all(type(key) is str and _is_data(part) for key, part in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_data, value))  # type: ignore[call-overload]
    return type(value) in (int, float, bool, str, type(None))


def loader_text(record_name: str, builder: str | None) -> str:
    """The loader for one record; without a builder it takes the dense network from its caller."""
    text = LOADER.replace("RECORD", f"Path(__file__).with_name({json.dumps(record_name)})")
    if builder is None:
        text = text.replace("import importlib\n", "").replace("def load(path=", "def load(model, path=")
        text = "".join(
            line for line in text.splitlines(keepends=True) if "package" not in line and "importlib" not in line
        )
    return text


def torchvision_builders(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every call of torchvision that may have built a network, before it was pruned: the import path, the arguments.

    Several sizes of a family differ in nothing but their widths. Which one it was does not matter, since the record
    says the widths.

    Example:
        >>> import torchvision
        >>> next(torchvision_builders(torchvision.models.squeezenet1_1()))[1]["name"]
        'squeezenet1_1'
    """
    torchvision: Any = sys.modules.get("torchvision")
    if torchvision is None:
        return  # Who has a model of it has imported it.
    mine = _structure(model)
    for name in torchvision.models.list_models():
        builder = torchvision.models.get_model_builder(name)
        if builder.__module__ != type(model).__module__:
            continue
        known = inspect.signature(builder).parameters
        for variant in VARIANTS:
            arguments: dict[str, Any] = {"name": name, "weights": None, **variant}
            # Else the backbone's weights are downloaded, only to be replaced.
            if "weights_backbone" in known:
                arguments["weights_backbone"] = None
            if "init_weights" in inspect.signature(type(model)).parameters:
                arguments["init_weights"] = False
            if variant.keys() <= {*known, *inspect.signature(type(model)).parameters}:
                with torch.device("meta"):
                    built = torchvision.models.get_model(**arguments)
                if _structure(built) == mine:
                    yield GET_MODEL, arguments


def _structure(model: nn.Module) -> list[tuple[Any, ...]]:
    """What pruning leaves as it is: names, classes, kernels, strides."""
    parts: list[tuple[Any, ...]] = []
    for name, module in model.named_modules():
        settings = [getattr(module, key, None) for key in ("kernel_size", "stride", "padding", "dilation")]
        own = [(key, t.ndim, tuple(t.shape[2:])) for key, t in module.named_parameters(recurse=False)]
        parts.append((name, type(module), *map(repr, settings), own))
    return parts
