"""The extras of the package that a command needs, looked for before anything else runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lightning_taylor.cli.exit import fail

__all__ = ["require_extras", "require_extras_of_data"]

EXTRAS = {
    "cli": ("jsonargparse", "docstring_parser"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "recipes": ("sklearn",),
}
"""Extra -> the modules that it brings."""

DIGITS = "lightning_taylor.recipes.digits.Digits"


def require_extras(*extras: str) -> None:
    """End the command if a module of these extras is missing, with the line that installs them.

    Raises:
        SystemExit: with 1, after a line on stderr.
    """
    if missing := [module for extra in extras for module in EXTRAS[extra] if find_spec(module) is None]:
        fail(1, f"missing {', '.join(missing)}: pip install 'lightning-taylor[{','.join(extras)}]'")


def require_extras_of_data(data: Any) -> None:
    """End the command if a configuration's ``data`` are the digits, and scikit-learn, which has them, is missing."""
    class_path = data.get("class_path") if isinstance(data, Mapping) else getattr(data, "class_path", data)
    if class_path == DIGITS:
        require_extras("recipes")
