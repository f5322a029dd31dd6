"""A private copy of the user's model to trace and to experiment on, so that the living one is never touched.

The copy computes in double precision with weights that leave nothing hidden: a residual branch whose last batch
norm starts at zero would make any mistake inside it invisible.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.modules.deep_copy import deep_copy

__all__ = [
    "private_copy",
    "reveal",
    "tensor_names",
]

_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")
"""What Lightning compiles of a module, and keeps as functions on it."""

_FLOATING = {"FloatFunctional", "FXFloatFunctional"}
"""What lies among the quantized modules and is a sum or a product in floating point, to be quantized later."""


def private_copy(model: nn.Module) -> nn.Module:
    """Copy a model deeply, without gradients, graphs and handles of the system; see ``deep_copy``.

    Raises:
        UnsupportedModelError: for scripted, quantized or lazy modules, or one that cannot be copied.
    """
    _check_supported(model)
    copied = deep_copy(model)
    _forget_compiled(copied, {id(function) for *_, function in _compiled_steps(model)})
    return copied


def _forget_compiled(copied: nn.Module, of_the_model: Collection[int]) -> None:
    """Drop the compiled functions that a copy shares with its model, which they call; it keeps those of its own."""
    for module in copied.modules():
        if vars(module).get("_compiled_call_impl") is not None:
            module._compiled_call_impl = None
    for module, step, function in list(_compiled_steps(copied)):
        if id(function) in of_the_model:
            delattr(module, step)


def _compiled_steps(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield each compiled function that a module keeps: its module, its name there, and what it was compiled from."""
    for module in model.modules():
        for step in _STEPS:
            function = getattr(vars(module).get(step), "_torchdynamo_orig_callable", None)
            if function is not None:
                yield module, step, function


def reveal(model: nn.Module, generator: torch.Generator) -> None:
    """Give every constant floating-point parameter or buffer (zeros, ones) a spread, in place, on a copy.

    A single zero, behind which a branch waits until training opens it, becomes a number near one half.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        flat = tensor.detach()
        alone = tensor.numel() == 1
        if bool((flat == 0 if alone else flat == flat.flatten()[0]).all()):
            noise = torch.rand(flat.shape, generator=generator, dtype=torch.float64) - (0.0 if alone else 0.5)
            flat.add_(noise.to(flat.device, flat.dtype))


def tensor_names(model: nn.Module) -> dict[int, str]:
    """Id of every parameter and buffer -> its first qualified name."""
    names: dict[int, str] = {}
    for name, tensor in named_tensors(model):
        names.setdefault(id(tensor), name)
    return names


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, by all of its names."""
    modules = [(f"{name}." if name else "", module) for name, module in model.named_modules(remove_duplicate=False)]
    for held in ("_parameters", "_buffers"):
        for prefix, module in modules:
            for name, tensor in getattr(module, held).items():
                if tensor is not None:
                    yield prefix + name, tensor


def _check_supported(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"a trace takes a torch.nn.Module, got {model!r}")
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(f"{where} is scripted (torch.jit); pass the Python module it was made from")
        if "quantized" in type(module).__module__.split(".") and type(module).__name__ not in _FLOATING:
            raise UnsupportedModelError(
                f"{where} ({type(module).__name__}) is quantized; prune the floating-point model, then quantize it"
            )
    for name, tensor in model.named_parameters():
        if is_lazy(tensor):
            raise UnsupportedModelError(f"parameter {name!r} is lazy; run one forward pass before the trace")
    for name, tensor in named_tensors(model):
        if tensor.is_meta:
            raise UnsupportedModelError(f"{name!r} is on the meta device; give it values before the trace")
        if tensor.layout is not torch.strided:
            raise UnsupportedModelError(f"{name!r} is sparse ({tensor.layout}); make it dense before the trace")
