"""Copies of a model at other widths, and what to run them on: for measuring what a selection would gain.

Time and memory do not depend on which channels are left, only on how many. So a copy at given shapes is cut from,
or grown out of, whatever widths a model has now, by repeating entries from the start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.graph.attributes import known
from lightning_taylor.graph.channels import Follower
from lightning_taylor.graph.copying import batch_size
from lightning_taylor.graph.passes import ForwardCall, few_of
from lightning_taylor.graph.resize import follow_shapes, hold, resized

__all__ = ["one_example", "repeated", "runner", "with_shapes"]


def with_shapes(net: nn.Module, shapes: Mapping[str, tuple[int, ...]], followers: Iterable[Follower] = ()) -> nn.Module:
    """A deep copy whose parameters and buffers have these shapes; what it computes is meaningless.

    Args:
        net: any module without hooks that may not be copied; left as it is.
        shapes: qualified name -> shape, as ``ChannelGraph.shapes`` or ``ChannelGraph.dense``. Names that the net
            does not have are skipped; tensors that are not named keep their shape.
        followers: as ``ChannelGraph.followers``.

    Returns:
        The copy: same device, dtype, memory format and mode, with the modules' attributes following.

    Raises:
        UncoupledChannelsError: if a module's attributes fit no such shape.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> with_shapes(net, {"0.weight": (2, 3, 1, 1), "0.bias": (2,), "1.weight": (4, 2, 1, 1)})[0]
        Conv2d(3, 2, kernel_size=(1, 1), stride=(1, 1))
    """
    twin = copy.deepcopy(net)
    tensors = dict(chain(twin.named_parameters(), twin.named_buffers()))
    with torch.no_grad():
        for name, shape in shapes.items():
            tensor = tensors.get(name)
            if tensor is not None and tuple(tensor.shape) != tuple(shape):
                entries = {d: torch.arange(n) % tensor.shape[d] for d, n in enumerate(shape) if n != tensor.shape[d]}
                hold(tensor, resized(tensor, entries))
    values = known(followers, shapes)
    for name, module in reversed(list(twin.named_modules())):
        follow_shapes(module, values=values.get(name))
    return twin


def runner(net: nn.Module, calls: Sequence[ForwardCall]) -> Callable[[], list[Any]]:
    """A function that makes these calls on a net and returns what they gave."""

    def run() -> list[Any]:
        return [net.get_submodule(c.module)(*c.args, **c.kwargs) for c in calls]

    return run


def one_example(calls: Sequence[ForwardCall]) -> tuple[list[ForwardCall], int]:
    """The calls cut to one example, which is cheap to keep, and how many examples they had."""
    batch = batch_size([(c.args, dict(c.kwargs)) for c in calls])
    return [few_of(c, batch) for c in calls], batch


def repeated(call: ForwardCall, batch: int, like: Tensor) -> ForwardCall:
    """A call of one example as one of ``batch`` equal ones.

    Args:
        call: tensors in it with a leading dimension of 1 are repeated; others stay.
        batch: number of examples.
        like: a parameter of the net: gives the device, and the dtype of floating-point inputs.
    """

    def repeat(value: Any) -> Any:
        if isinstance(value, Tensor):
            value = value.detach().to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            return value.repeat(batch, *[1] * (value.ndim - 1)) if value.ndim and value.shape[0] == 1 else value
        if isinstance(value, dict):
            return {k: repeat(v) for k, v in value.items()}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(repeat(v) for v in value)
        return value

    return ForwardCall(call.module, repeat(call.args), repeat(dict(call.kwargs)))
