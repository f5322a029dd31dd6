"""Hooks on modules that do nothing on a copy of the module: an averaged model must not be scored along.

Deep-copied or pickled, a hook leaves a function that does nothing in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = [
    "Arguments",
    "FunctionHook",
    "InertCopy",
    "InputHook",
    "hooks_undone",
    "with_input",
]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with: positional arguments, and those by keyword."""


class InertCopy:
    """A base of hooks whose copies do nothing."""

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _make_idle, ()


class FunctionHook(InertCopy):
    """A function as a hook, until ``run`` is set to None.

    Example:
        >>> import copy
        >>> net = nn.Linear(2, 2)
        >>> handle = net.register_forward_hook(FunctionHook(lambda *_: print("ran")))
        >>> _ = net(torch.ones(1, 2))
        ran
        >>> _ = copy.deepcopy(net)(torch.ones(1, 2))
    """

    def __init__(self, run: Callable[..., Any] | None = None) -> None:
        self.run = run

    def __call__(self, *args: Any) -> Any:
        """Run the function, if there is one."""
        return self.run(*args) if self.run is not None else None


class InputHook(InertCopy):
    """A base of forward pre-hooks (with keyword arguments) that look at the input of one layer.

    Args:
        module: a convolution, transposed convolution, linear or recurrent layer; not kept.

    Attributes:
        maps: whether the channels are the second dimension of the input; else they are the last one.
        batched: how many dimensions the input has if there is one for the examples.
        paused: whether the passes are to be left alone.
    """

    def __init__(self, module: nn.Module) -> None:
        self.maps = isinstance(module, _ConvNd)
        self.batched = len(module.kernel_size) + 2 if isinstance(module, _ConvNd) else 2
        self.paused = False

    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the layer's input, unless the pass is to be left alone: paused, or without gradients."""
        x = args[0] if args else kwargs.get("input")
        return x if not self.paused and torch.is_grad_enabled() and isinstance(x, Tensor) else None


@contextmanager
def hooks_undone(model: nn.Module) -> Iterator[None]:
    """Take off, if the block raises, the hooks that it put on a model: nobody else knows them yet.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with hooks_undone(net):
        ...     _ = net.register_forward_hook(print)
        ...     raise ValueError("something else went wrong")
        Traceback (most recent call last):
        ValueError: something else went wrong
        >>> len(net._forward_hooks)
        0
    """
    before = [(hooks, set(hooks)) for module in model.modules() for kind in _KINDS for hooks in [getattr(module, kind)]]
    try:
        yield
    except BaseException:
        for hooks, known in before:
            for number in hooks.keys() - known:
                del hooks[number]
        raise


_KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Arguments:
    """Put another input in the place of a layer's."""
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})


def _idle(*args: Any, **kwargs: Any) -> None:
    return None


def _make_idle() -> Callable[..., None]:
    return _idle
