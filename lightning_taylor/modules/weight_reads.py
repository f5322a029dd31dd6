"""What reads a weight, whoever calls: its own module, or other code, as in ``F.conv2d(x, self.conv.weight)``.

A hook on the module sees only the calls of the module. A tapped parameter sees every function that is given it: it is
the same object, with the same values, of a class that looks at what is read with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Tap", "TappedParameter", "can_be_tapped", "tap", "weight_read_by"]

_READING: frozenset[Callable[..., Any]] = frozenset(
    (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
)
"""Functions of an input and a weight, in this order."""

Hook = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""A forward pre-hook with keyword arguments."""


def weight_read_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the weight that a function is given to read its input with; None if it is no such function."""
    if func not in _READING:
        return None
    return args[1] if len(args) > 1 else kwargs.get("weight")


class TappedParameter(nn.Parameter):
    """A parameter that shows hooks what is read with it; ``tap`` makes it of an ordinary one."""

    hooks: list[Hook]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, its input changed by the hooks of the weight that it reads with."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            weight = weight_read_by(func, args, kwargs)
            for hook in tuple(weight.hooks) if isinstance(weight, TappedParameter) else ():
                changed = hook(None, args[:1], {} if args else {"input": kwargs["input"]})
                if changed is not None:
                    args, kwargs = (*changed[0], *args[1:]), {**kwargs, **changed[1]}
            return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """Copy the values; nobody looks at the copy."""
        memo[id(self)] = copied = nn.Parameter(self.data.clone(memory_format=torch.preserve_format), self.requires_grad)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save it as the ordinary parameter that it is."""
        return nn.Parameter(self.data, self.requires_grad).__reduce_ex__(protocol)


class Tap:
    """A hook on a weight, until it is removed."""

    def __init__(self, parameter: TappedParameter, hook: Hook) -> None:
        self._parameter: Any = parameter
        self._hook = hook

    def remove(self) -> None:
        """Take the hook off; a no-op the second time."""
        hooks = vars(self._parameter).get("hooks", [])
        if self._hook in hooks:
            hooks.remove(self._hook)
            if not hooks:
                del self._parameter.hooks
                self._parameter.__class__ = nn.Parameter


def can_be_tapped(parameter: Tensor) -> bool:
    """Return whether a parameter is an ordinary one; others have their own idea of what functions do with them."""
    return type(parameter) in (nn.Parameter, TappedParameter)


def tap(parameter: nn.Parameter, hook: Hook) -> Tap:
    """Let a hook see, and change, what is read with a parameter.

    Example:
        >>> weight = nn.Parameter(torch.ones(1, 2))
        >>> handle = tap(weight, lambda module, args, kwargs: print(args[0].tolist()))
        >>> F.linear(torch.ones(1, 2), weight).tolist()
        [[1.0, 1.0]]
        [[2.0]]
        >>> handle.remove()
        >>> type(weight).__name__
        'Parameter'
    """
    tapped: Any = parameter
    if not isinstance(tapped, TappedParameter):
        tapped.__class__ = TappedParameter
        tapped.hooks = []
    tapped.hooks.append(hook)
    return Tap(tapped, hook)
