"""What a module is called with, as a checkpoint remembers it: shapes and types, from which new inputs are drawn.

It is one way only: the numbers of the call are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_taylor.utilities.calls import ForwardCall

__all__ = ["call_like", "call_template"]


def call_template(call: ForwardCall) -> dict[str, Any] | None:
    """Describe what a module was given, in plain types; None if that is more than tensors and plain values.

    Example:
        >>> call_template(ForwardCall("net", (torch.zeros(1, 3),)))
        {'module': 'net', 'args': [{'shape': [1, 3], 'dtype': 'float32'}], 'kwargs': {}}
    """
    try:
        return {
            "module": call.module,
            "args": [_described(value) for value in call.args],
            "kwargs": {name: _described(value) for name, value in call.kwargs.items()},
        }
    except TypeError:
        return None


def call_like(template: Mapping[str, Any], generator: torch.Generator | None = None) -> ForwardCall:
    """Make a call of the same shapes: normally distributed numbers, and zeros for whole numbers and truth values."""
    args = tuple(_drawn(value, generator) for value in template["args"])
    return ForwardCall(
        template["module"], args, {name: _drawn(value, generator) for name, value in template["kwargs"].items()}
    )


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if type(value) in (list, tuple):
        return {"of": type(value).__name__, "items": [_described(v) for v in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"of": "dict", "items": {key: _described(v) for key, v in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{type(value).__name__} is neither a tensor nor a plain value")


def _drawn(template: Any, generator: torch.Generator | None) -> Any:
    if not isinstance(template, Mapping):
        return template
    if "shape" in template:
        dtype = getattr(torch, template["dtype"])
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(*template["shape"], dtype=dtype, generator=generator)
        return torch.zeros(*template["shape"], dtype=dtype)
    items = template["items"]
    if template["of"] == "dict":
        return {key: _drawn(v, generator) for key, v in items.items()}
    values = [_drawn(v, generator) for v in items]
    return tuple(values) if template["of"] == "tuple" else values
