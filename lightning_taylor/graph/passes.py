"""Running the private copy: both paths, in the precision that it runs in, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.quiet import quiet
from lightning_taylor.utilities.calls import ForwardCall, cast_call, tensors_in

__all__ = [
    "Paths",
    "in_mode",
    "outputs_of",
    "settle_precision",
]

Paths = Sequence[bool]
"""False for the evaluation path, True for the training path; in this order."""


def outputs_of(
    net: nn.Module, calls: Sequence[ForwardCall], dtype: torch.dtype, paths: Paths = (False, True)
) -> list[Tensor]:
    """Every floating-point output of these paths."""
    outputs = []
    for training in paths:
        with in_mode(net, training), quiet(dtype=dtype):
            for call in calls:
                out = net.get_submodule(call.module)(*call.args, **call.kwargs)
                outputs.extend(t.detach().clone() for t in tensors_in(out) if t.is_floating_point())
    return outputs


def settle_precision(
    net: nn.Module, few: list[ForwardCall], calls: Sequence[ForwardCall]
) -> tuple[torch.dtype, list[ForwardCall]]:
    """Double precision and one example if the model runs that way; what it was given if not."""
    own = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    attempts = [(torch.float64, few), (own, few), (own, list(calls))]
    failure: Exception | None = None
    for dtype, given in attempts:
        given = [cast_call(c, dtype) for c in given]
        # Not net.to(dtype): that would cut complex numbers to their real part.
        net._apply(lambda t, dtype=dtype: t.to(dtype) if t.is_floating_point() else t)
        try:
            outputs = outputs_of(net, given, dtype)
        except Exception as error:
            failure = error
        else:
            _check_finite(net, outputs)
            return dtype, given
    raise UnsupportedModelError(
        f"the forward pass of {type(net).__name__} raised {type(failure).__name__} on the example inputs: {failure}"
    ) from failure


def _check_finite(net: nn.Module, outputs: list[Tensor]) -> None:
    """Outputs without a number agree with any others, so nothing could be proven by them."""
    if outputs and not any(bool(t.isfinite().any()) for t in outputs if t.numel()):
        names = [name for name, p in net.named_parameters() if not bool(p.isfinite().all())]
        cause = f"{names[0]!r} is not finite" if names else "look at the example inputs"
        raise UnsupportedModelError(
            f"the forward pass of {type(net).__name__} gives no finite number on the example inputs: {cause}"
        )


@contextmanager
def in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode, with modes and buffers given back."""
    modes = [(m, m.training) for m in net.modules()]
    buffers = [(b, b.detach().clone()) for b in net.buffers()]
    net.train(training)
    try:
        yield
    finally:
        for module, was in modes:
            module.training = was
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
