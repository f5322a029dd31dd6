"""Which class a checkpoint belongs to: named on the command line, by a configuration, or one of our own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lightning_taylor.cli.failure import fail
from lightning_taylor.cli.fit_config import FitConfig
from lightning_taylor.cli.messages import nearest

__all__ = ["class_path_of", "import_class"]


def class_path_of(model: str | None, config: FitConfig | None, saved: str | None, path: str) -> str:
    """Where the class is to be found: named by the user, or one of our own."""
    if config is not None:
        named = config.class_path or saved
        if named is None:
            fail(
                2,
                f"{config.name} does not say of which class its `model` is: add class_path: package.module.Class to it",
            )
        return named
    if model is not None:
        return model
    # What a checkpoint names is not imported: a file from elsewhere could so run any module that is installed.
    if saved is None or not saved.startswith("lightning_taylor."):
        known = f" (it says {saved})" if saved else ""
        fail(2, f"{path}: of which class?{known} Give --model {saved or 'package.module.Class'} or a config.yaml")
    return saved


def import_class(class_path: str) -> Any:
    """What the import path of a model names."""
    package, _, name = class_path.rpartition(".")
    if not package:
        fail(2, f"--model {class_path}: give its import path, as in my_project.nets.{name}")
    try:
        module = import_module(package)
    except ImportError as error:
        if not class_path.startswith(error.name or " "):
            raise
        fail(2, f"--model {class_path}: no module is called {error.name!r}")
    if not hasattr(module, name):
        names = [n for n, value in vars(module).items() if isinstance(value, type)]
        fail(2, f"--model {class_path}: {module.__name__} has no {name!r}{nearest(name, names)}")
    return getattr(module, name)
