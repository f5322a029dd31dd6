"""A deep copy of a module with whatever its users keep on it: cached features, metrics, locks, open files, loggers.

``copy.deepcopy`` gives up at the first tensor with a graph and at the first lock, and it follows references out of
the model, to a Trainer or a data set. So the objects that it would meet are looked through first, and for each of
these kinds it is decided beforehand what stands in its place in the copy.
"""

from __future__ import annotations

import copy
import functools
import io
import logging
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CellType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
)
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_taylor.errors import UnsupportedModelError

__all__ = ["deep_copy"]

_ATOMS = (
    int, float, complex, str, bytes, type(None), type, range, slice, BuiltinFunctionType,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip

_SHARED = (logging.Logger, logging.Handler, ModuleType, Dataset, DataLoader)
"""Used by the copy as well as by the original, without harm; data sets also because they are large."""

_LEFT_OUT = (
    GeneratorType, CoroutineType, AsyncGeneratorType, threading.Thread, Executor, subprocess.Popen, socket.socket,
    _BaseDataLoaderIter,
)  # fmt: skip

_FRESH: Mapping[type, Callable[[], object]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.Condition: threading.Condition,
    threading.Event: threading.Event,
}
"""New ones in the copy, not held by anybody: ``with self.lock:`` works there too."""

_HOSTS = ("_trainer", "_fabric")
"""Where a LightningModule keeps who trains it."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)


def deep_copy(model: nn.Module) -> nn.Module:
    """Copy a module, without gradients, without any autograd graph and without who trains it.

    Every tensor with a graph is detached, wherever the module keeps it. Locks and events are new ones; loggers, data
    sets and objects with a destructor are shared with the original; threads, generators, iterators over a DataLoader,
    open files, sockets and other handles of the system are None. Functions among the hooks and attributes see the copy
    where they saw the original. The original stays as it is.

    Raises:
        UnsupportedModelError: naming the attribute that cannot be copied all the same.
    """
    memo, leaves = _stand_ins(model)
    grads = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
    known = dict(memo)
    try:
        for leaf, _ in grads:
            leaf.grad = None
        copied = copy.deepcopy(model, memo)
        _rebind_functions(copied, memo)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied for the trace: {_culprit(model, known)} raises "
            f"{type(error).__name__}: {error}. Keep it off the module, or give its class a __deepcopy__"
        ) from error
    finally:
        for leaf, grad in grads:
            leaf.grad = grad
    return copied


def _stand_ins(model: nn.Module) -> tuple[dict[int, Any], list[Tensor]]:
    """Return the memo to begin a deep copy with, and every tensor without a graph that the copy will meet."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in _HOSTS:
            if (host := vars(module).get(name)) is not None:
                memo[id(host)] = None
    leaves: list[Tensor] = []
    seen: set[int] = set(memo)
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _ATOMS):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor) and value.grad_fn is None:
            leaves.append(value)
        if _decide(value, memo):
            waiting.extend(_parts(value))
    return memo, leaves


def _decide(value: Any, memo: dict[int, Any]) -> bool:
    """Note what stands in an object's place, if it is of a kind that needs that; return whether to look into it."""
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            memo[id(value)] = value.detach().clone()
            return False
    elif isinstance(value, nn.Module | FunctionType):
        return not isinstance(value, FunctionType)
    elif type(value) in _FRESH:
        memo[id(value)] = _FRESH[type(value)]()
        return False
    elif isinstance(value, _LEFT_OUT) or _hosts(value):
        memo[id(value)] = None
        return False
    elif isinstance(value, io.IOBase | torch.Generator) or not _has_parts(value):
        memo[id(value)] = _copied_or_none(value)
        return False
    elif isinstance(value, _SHARED) or hasattr(type(value), "__del__"):
        memo[id(value)] = value
        return False
    return True


def _hosts(value: object) -> bool:
    """Whether this is a Trainer or a Fabric, of either name of Lightning, or derived from one."""
    return any(
        cls.__name__ in ("Trainer", "Fabric") and cls.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
        for cls in type(value).__mro__
    )


def _copied_or_none(value: Any) -> Any:
    """Copy what nothing can be seen inside of: an array, a handle of the system."""
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    if isinstance(value, io.IOBase) and not isinstance(value, io.BytesIO | io.StringIO):
        return None
    try:
        return copy.deepcopy(value)
    except Exception:
        return None


def _has_parts(value: object) -> bool:
    return (
        isinstance(value, dict | list | tuple | set | frozenset | deque | MethodType | functools.partial)
        or hasattr(value, "__dict__")
        or next(_slots(value), None) is not None
        or hasattr(value, "__deepcopy__")
    )


def _parts(value: Any) -> Iterator[Any]:
    """Yield what a deep copy goes on to from an object."""
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from value
    elif isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    yield from getattr(value, "__dict__", {}).values()
    for name in _slots(value):
        yield getattr(value, name, None)


def _slots(value: object) -> Iterator[str]:
    for cls in type(value).__mro__:
        names = vars(cls).get("__slots__", ())
        yield from (n for n in ((names,) if isinstance(names, str) else names) if n not in ("__dict__", "__weakref__"))


def _rebind_functions(copied: nn.Module, memo: dict[int, Any]) -> None:
    """Let the functions on the copy see the copy: a deep copy shares functions, with all that they close over."""
    for module in copied.modules():
        held = [vars(module), *(vars(module)[name] for name in _HOOKS if vars(module).get(name))]
        for functions in held:
            for key, function in list(functions.items()):
                if isinstance(function, FunctionType):
                    functions[key] = _instead(function, memo)


def _instead(value: Any, memo: dict[int, Any]) -> Any:
    """Return what the copy has in the place of something that a function closes over, such as the forward it calls."""
    if id(value) in memo or not _sees_original(value, memo, set()):
        return memo.get(id(value), value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _instead(value.__self__, memo))
    return _rebound(value, memo)


def _sees_original(value: Any, memo: Mapping[int, Any], visited: set[int]) -> bool:
    if id(value) in memo:
        return memo[id(value)] is not value
    if id(value) in visited:  # a function may close over itself
        return False
    visited.add(id(value))
    if isinstance(value, MethodType):
        return _sees_original(value.__self__, memo, visited)
    return isinstance(value, FunctionType) and any(_sees_original(v, memo, visited) for v in _closed_over(value))


def _closed_over(function: FunctionType) -> list[Any]:
    kept = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [_content(cell) for cell in function.__closure__ or ()] + kept


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    cells = tuple(CellType() for _ in function.__closure__ or ())
    new = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    memo[id(function)] = new
    for cell, original in zip(cells, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # still empty
            cell.cell_contents = _instead(original.cell_contents, memo)
    if function.__defaults__:
        new.__defaults__ = tuple(_instead(value, memo) for value in function.__defaults__)
    if function.__kwdefaults__:
        new.__kwdefaults__ = {name: _instead(value, memo) for name, value in function.__kwdefaults__.items()}
    new.__dict__.update(function.__dict__)
    return new


def _culprit(model: nn.Module, known: Mapping[int, Any]) -> str:
    """Find the attribute that a deep copy fails at, by trying each alone; innermost modules first."""
    modules = [*model.named_modules()]
    stay = {**known, **{id(m): m for _, m in modules}, **{id(p): p for p in model.parameters()}}
    for name, module in reversed(modules):
        prefix = f"{name}." if name else ""
        for attribute, value in vars(module).items():
            inner = isinstance(value, dict) and attribute.startswith("_")
            for key, item in value.items() if inner else ((attribute, value),):
                if not _can_be_copied(item, stay):
                    return f"{prefix}{attribute}" if inner and attribute != "_buffers" else f"{prefix}{key}"
        if not _can_be_copied(module, {key: value for key, value in stay.items() if key != id(module)}):
            return f"module {name!r} ({type(module).__name__})" if name else "the module itself"
    return "the module itself"


def _can_be_copied(value: Any, memo: Mapping[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True
