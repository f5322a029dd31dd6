"""Names inside a checkpoint that loading it would import and call: a file from elsewhere must not choose them.

LightningCLI saves the arguments of a module as its configuration has them, classes by their import paths, and Lightning
builds these classes anew. So a checkpoint of nothing but tensors and text could run whatever is installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

__all__ = ["arguments_in", "saved_arguments", "texts_in", "unasked_imports"]

_KNOWN = ("torch.nn.", "torch.optim.", "torchvision.models.", "torchvision.ops.", "lightning_taylor.recipes.")

_PLACES = ("hparams", "module_arguments", "hyper_parameters")
"""Where Lightning looks for the arguments of a module, the first two in files of its first releases."""

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def arguments_in(checkpoint: Any) -> dict[str, Any]:
    """Return the arguments that a checkpoint remembers of its module; none of what is no checkpoint."""
    places = [checkpoint.get(place) for place in _PLACES] if isinstance(checkpoint, Mapping) else []
    return {name: value for found in places if isinstance(found, Mapping) for name, value in found.items()}


def saved_arguments(file: Any) -> dict[str, Any]:
    """Read the same from a file, with ``weights_only``; none if it cannot be read like that.

    Args:
        file: a path, of which only the part that describes the tensors is read; or an open file, which is read whole
            and then set back.
    """
    at = file.tell() if hasattr(file, "seek") else None
    for mapped in (True, False) if at is None else (False,):
        try:
            return arguments_in(torch.load(file, map_location="cpu", weights_only=True, mmap=mapped))
        except Exception:
            continue  # whoever loads it next says what is wrong
        finally:
            if at is not None:
                file.seek(at)
    return {}


def unasked_imports(arguments: Mapping[str, Any], packages: Collection[str]) -> list[str]:
    """List the import paths among the arguments of a module that Lightning builds by them.

    Left out are what is below some packages, torch's and torchvision's layers and optimizers, and modules that the
    program has imported by itself. What Lightning does not build by import paths is passed on as it is.

    Args:
        arguments: the hyperparameters in a checkpoint.
        packages: names without a dot, of packages that the user named.

    Example:
        >>> unasked_imports({"net": {"class_path": "os.path.Net"}, "_instantiator": "..."}, ["my_project"])
        ['os.path.Net']
        >>> unasked_imports({"net": {"class_path": "torch.nn.Linear"}, "_instantiator": "..."}, ["my_project"])
        []
    """
    if not arguments.get("_instantiator"):
        return []
    plain = {name: value for name, value in arguments.items() if not str(name).startswith("_")}
    paths = dict.fromkeys(text for text in texts_in(plain) if _IMPORT_PATH.fullmatch(text))
    return [path for path in paths if not _is_known(path, packages) and _can_import(path.partition(".")[0])]


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in nested dicts and lists, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(part)


def _is_known(path: str, packages: Collection[str]) -> bool:
    package, _, name = path.rpartition(".")
    imported = getattr(sys.modules.get(package), name, None)
    is_module = isinstance(imported, type) and issubclass(imported, nn.Module)
    return is_module or path.startswith(_KNOWN) or path.partition(".")[0] in packages


def _can_import(package: str) -> bool:
    try:
        return package in sys.modules or find_spec(package) is not None
    except (ImportError, ValueError):
        return False
