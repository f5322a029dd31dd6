"""How to build a pruned network again: what builds the dense one, and the attributes and shapes that differ.

The record is JSON; the loader that reads it needs torch and the builder's package, and nothing of this one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lightning_taylor.modules.attributes import rule_of

__all__ = ["LOADER", "architecture_record", "loader_text", "torchvision_builders"]

LOADER = '''\
"""Loads a pruned network: torch and what builds the dense network are all it needs."""

import importlib
import json
from pathlib import Path

import torch


def load(path=RECORD):
    record = json.loads(Path(path).read_text())
    package, _, name = record["builder"].rpartition(".")
    model = getattr(importlib.import_module(package), name)(**record["arguments"])
    for layer, attributes in record["layers"].items():
        vars(model.get_submodule(layer)).update(attributes)
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
        ``layers`` maps the name of every module with parameters to its attributes that are whole numbers, lists of
        them (tuples become lists) or truth values, and its widths; ``tensors`` every name of the state dict to its
        shape.

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
        "layers": dict(_layers(model)),
        "tensors": {name: list(t.shape) for name, t in model.state_dict().items() if isinstance(t, Tensor)},
    }


def _layers(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in model.named_modules():
        if next(chain(module.parameters(), module.buffers()), None) is not None:
            # Numbers may be widths that the user's own code reads (num_heads), and truth values what it chose by a
            # width (whether a block of MobileNet adds its input).
            plain = {k: v for k, v in vars(module).items() if type(v) in (int, bool) and k[0] != "_"}
            plain.pop("training")
            rule = rule_of(module)
            followed = dict(rule(module, {})) if rule else _listed(module)
            followed.pop("__class__", None)
            if attributes := {**plain, **followed}:
                yield name, attributes


def _listed(module: nn.Module) -> dict[str, list[int]]:
    """The lists of whole numbers that the code of the user's own module may take its channels apart by."""
    lists = {k: v for k, v in vars(module).items() if isinstance(v, list | tuple) and v and k[0] != "_"}
    return {k: list(v) for k, v in lists.items() if all(type(n) is int for n in v)}


def loader_text(record_name: str, builder: str | None) -> str:
    """The loader for one record; without a builder it takes the dense network from its caller."""
    text = LOADER.replace("RECORD", f'Path(__file__).with_name("{record_name}")')
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
        >>> next(torchvision_builders(torchvision.models.squeezenet1_1()))[1]["name"]
        'squeezenet1_1'
    """
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
