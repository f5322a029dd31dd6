"""Example inputs from the user's own training batch: which parts of the model are called, and with what.

A training step may call the whole model (``self(x)``), a part of it (``self.net(x)``) or several parts. Every call
that is not made from inside another one is recorded; the trace repeats them on a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_taylor.utilities.atomic import signals_deferred
from lightning_taylor.utilities.calls import ForwardCall, tensors_in
from lightning_taylor.utilities.hooks import FunctionHook

__all__ = [
    "CallListener",
    "CallRecorder",
    "Recording",
]


class CallRecorder:
    """Records the outermost forward calls of a model until it is closed; a context manager.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> with CallRecorder(net) as recorder:
        ...     _ = net(torch.rand(3, 4))
        >>> [(call.module, tuple(call.args[0].shape)) for call in recorder.calls]
        [('', (3, 4))]
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[ForwardCall] = []
        self.differentiable: dict[str, bool] = {}
        """Name of a module that was called -> whether it was given something which needs a gradient."""
        self._seen: set[Any] = set()
        self._depth = 0
        self._handles: list[RemovableHandle] = []
        # Compiled code would compile the hooks along, or not call them; and the next batch is compiled soon enough.
        self._stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else None
        for name, module in model.named_modules():
            if next(module.parameters(), None) is not None:
                enter, leave = FunctionHook(self._entering(name)), FunctionHook(self._leave)
                self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(leave, always_call=True))

    def __enter__(self) -> CallRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clear(self) -> None:
        """Forget the calls so far."""
        self.calls.clear()
        self.differentiable.clear()
        self._seen.clear()

    def close(self) -> None:
        """Take every hook off the model again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None

    def _entering(self, name: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if _is_redirected(module):
                return
            needs = torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in((args, kwargs)))
            self.differentiable[name] = needs or self.differentiable.get(name, False)
            if self._depth == 0:
                self._record(ForwardCall(name, args, kwargs))
            self._depth += 1

        return enter

    def _leave(self, module: nn.Module, _args: Any, _out: Any) -> None:
        self._depth = max(0, self._depth - 1)

    def _record(self, call: ForwardCall) -> None:
        shapes = tuple(tuple(t.shape) for t in tensors_in((call.args, dict(call.kwargs))))
        if (call.module, shapes) not in self._seen:
            self._seen.add((call.module, shapes))
            self.calls.append(call)


def _is_redirected(module: nn.Module) -> bool:
    """Whether a wrapper calls this module's ``forward`` only to get at its training step."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


@dataclass(frozen=True)
class Recording:
    """What was seen of a training batch.

    Attributes:
        calls: the outermost forward calls, in order.
        differentiable: name of a module that was called -> whether it was given something which needs a gradient.
        forward: the call of the whole module that the user gave as an example; it is what is counted and measured.
    """

    calls: list[ForwardCall]
    differentiable: Mapping[str, bool] = field(default_factory=dict)
    forward: ForwardCall | None = None


@final
class CallListener:
    """The recorder of a model's calls, if there is one at the moment.

    Example:
        >>> listening, net = CallListener(), nn.Linear(2, 1)
        >>> listening.begin(net)
        >>> listening.end(), listening.end()
        (Recording(calls=[], differentiable={}, forward=None), None)
    """

    def __init__(self) -> None:
        self._recorder: CallRecorder | None = None

    def begin(self, model: nn.Module) -> None:
        """Record what the model is called with, until ``end``."""
        with signals_deferred():  # a Ctrl-C among its hooks would leave some that nobody knows
            self._recorder = CallRecorder(model)

    def clear(self) -> None:
        """Forget what was recorded so far: another batch begins."""
        if self._recorder:
            self._recorder.clear()

    @property
    def heard(self) -> bool:
        """Whether a call was recorded since the last ``clear``."""
        return self._recorder is not None and bool(self._recorder.calls)

    def end(self) -> Recording | None:
        """Take the recorder off, and return what it saw since the last ``clear``; None if there was no recorder."""
        if not self._recorder:
            return None
        recording = Recording(list(self._recorder.calls), dict(self._recorder.differentiable))
        self._recorder.close()
        self._recorder = None
        return recording
