"""Which class a checkpoint belongs to: named on the command line, by a configuration, or one of our own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from lightning_taylor.cli.configs import shipped_configs
from lightning_taylor.cli.failure import fail
from lightning_taylor.cli.messages import nearest

__all__ = ["class_path_of", "import_class", "read_config"]


def read_config(model: str | None) -> dict[str, Any] | None:
    """The configuration that ``--model`` names, if it names one."""
    if model is None or not (model in shipped_configs() or model.endswith((".yaml", ".yml")) or os.path.isfile(model)):
        return None
    path = shipped_configs().get(model, Path(model))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fail(2, f"--model {model}: no such file")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(2, f"{path} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict | str):
        fail(2, f"{path} has no model: expected a configuration of a fit, such as the config.yaml beside its logs")
    return content


def class_path_of(model: str | None, config: Mapping[str, Any] | None, saved: str | None, path: str) -> str:
    """Where the class is to be found: named by the user, or one of our own."""
    if config is not None:
        named = config["model"] if isinstance(config["model"], str) else config["model"].get("class_path", saved)
        if named is None:
            fail(2, f"--model {model} names no class_path: give --model package.module.Class")
        return named
    if model is not None:
        return model
    # What a checkpoint names is not imported: a file from elsewhere could so run any module that is installed.
    if saved is None or not saved.startswith("lightning_taylor."):
        known = f" (it says {saved})" if saved else ""
        fail(2, f"{path}: of which class?{known} Give --model {saved or 'package.module.Class'} or a config.yaml")
    return saved


def import_class(class_path: str, option: str = "--model") -> Any:
    """What an import path names; the ``option`` that it was given by is for the message."""
    package, _, name = class_path.rpartition(".")
    if not package:
        fail(2, f"{option} {class_path}: give its import path, as in my_project.nets.{name}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script does not look into the folder that it is called from
    try:
        module = import_module(package)
    except ImportError as error:
        if not class_path.startswith(error.name or " "):
            raise
        fail(2, f"{option} {class_path}: no module is called {error.name!r}")
    if not hasattr(module, name):
        names = [n for n, value in vars(module).items() if isinstance(value, type)]
        fail(2, f"{option} {class_path}: {module.__name__} has no {name!r}{nearest(name, names)}")
    return getattr(module, name)
