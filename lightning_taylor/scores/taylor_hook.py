"""Watching what a layer reads: its input and the gradient of that input meet in the backward pass.

Why not a tensor hook: a hook on the input that needs the input refers to itself, a cycle that keeps every activation
alive until the garbage collector runs. Why not a full backward hook: it wraps the module in a view that breaks on
in-place activations, and does not have the input. So the input passes through an identity of our own. It saves the
input for its backward pass, the very storage that the layer saves for its weight's gradient, and the graph frees both
together. Gradient checkpointing sees an ordinary saved tensor, which it packs, recomputes and unpacks.

Compiled code cannot follow a backward pass that writes into a Python object. There the contributions are the gradient
of a gate: a leaf of zeros that goes into the identity beside the input, and so into the compiled graph. A gate has to
be there before the code is compiled, with a row for every entry that the layer will see. Without one, or for another
number of entries, the graph breaks at the tap.

How it could still fail: a layer with a frozen weight does not save its input, so a model may overwrite that input in
place afterwards; with the tap, autograd notices and raises in the backward pass.

Shape legend: L = leading entries as the layer saw them, I = input channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from lightning_taylor.scores.formulas import Positions, taylor_contributions
from lightning_taylor.utilities.hooks import InputHook, with_input

__all__ = [
    "TaylorHook",
]

_CASTING = frozenset(
    kind.forward
    for kind in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    )
)  # fmt: skip
"""Code whose input autocast brings to its own precision, and nothing looks at it before."""


class _Kind(NamedTuple):
    """How a layer's input is laid out: constants for compiled code."""

    maps: bool
    batched: int
    time_first: bool
    positions: Positions


@final
class TaylorHook(InputHook):
    """A forward pre-hook that gathers the contributions of one layer's input channels, call by call.

    Args:
        module: a convolution, transposed convolution, linear or recurrent layer; not kept.
        positions: what is done over positions.
    """

    def __init__(self, module: nn.Module, positions: Positions) -> None:
        super().__init__(module)
        time_first = isinstance(module, nn.RNNBase) and not module.batch_first
        self._kind = _Kind(self.maps, 3 if isinstance(module, nn.RNNBase) else self.batched, time_first, positions)
        self._casts = type(module).forward in _CASTING
        self._calls: list[tuple[int, Tensor]] = []
        self._number = 0
        self._kept: list[Tensor] = []
        self._gate_LI: Tensor | None = None

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let the layer's input pass through the identity, before its forward pass."""
        x = self.input_of(args, kwargs)
        if x is None or not x.requires_grad:
            return None
        if self._casts and x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
            # The layer would, and save the copy for its backward pass: else the input is kept in both precisions.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        tapped = self._through_gate(x) if torch.compiler.is_compiling() else self._through_identity(x)
        return with_input(args, kwargs, tapped)

    def _through_gate(self, x: Tensor) -> Tensor:
        """In compiled code."""
        gate_LI = self._gate_LI
        if gate_LI is None or len(gate_LI) != _entries(x, self._kind):
            return _through(x, self)
        return _Gated.apply(x, gate_LI, *self._kind)  # type: ignore[return-value]

    def _through_identity(self, x: Tensor) -> Any:
        self._number += 1
        return _Identity.apply(x, self, self._number)

    def add(self, x: Tensor, grad: Tensor, number: int) -> None:
        """Gather one call's contributions, in the backward pass, which goes through the calls from the last."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
            # Or a backward pass with create_graph would keep its graph alive in here; and autocast would be applied to
            # the product by a manual backward inside of training_step.
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                self._calls.append((number, _contributions(x.detach(), grad.detach(), self._kind)))
        else:
            self._calls.append((number, _contributions(x, grad, self._kind)))

    def drop(self) -> None:
        """Forget what was gathered since the last ``keep``."""
        self._seen()

    def keep(self) -> None:
        """What was gathered until now is of the loss's own backward pass."""
        self._kept += self._seen()

    def take(self) -> list[Tensor]:
        """The contributions since the last ``take``, each of shape ``(L, I)``, and forget them.

        Those that were kept; or all, if none was: nobody said which passes are the loss's own.
        """
        seen = self._seen()
        calls, self._kept = self._kept or seen, []
        self._number = 0
        return calls

    @property
    def entries(self) -> int | None:
        """L, of the calls that compiled code can make."""
        return None if self._gate_LI is None else len(self._gate_LI)

    def make_gate(self, zero: Tensor, entries: int, width: int) -> None:
        """Let compiled code call the layer with L ``entries`` of I channels; all of the gate is one ``zero``."""
        if self._gate_LI is None or self._gate_LI.shape != (entries, width):
            self._gate_LI = zero.expand(entries, width).requires_grad_()

    def _seen(self) -> list[Tensor]:
        """What was gathered since the last call, in the order of the forward pass, and forget it."""
        calls = [contribution_LI for _, contribution_LI in sorted(self._calls, key=lambda call: call[0])]
        self._calls = []
        if self._gate_LI is not None and self._gate_LI.grad is not None:
            calls.append(self._gate_LI.grad)
            self._gate_LI.grad = None
        return calls


class _Identity(torch.autograd.Function):
    """Hands its input on, and in the backward pass shows input and gradient to a tap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tap: TaylorHook, number: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tap, ctx.number = tap, number
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        ctx.tap.add(x, grads[0], ctx.number)
        return grads[0], None, None


def _uncompiled(x: Tensor, tap: TaylorHook) -> Any:
    return tap._through_identity(x)


_through: Callable[..., Any] = torch.compiler.disable(_uncompiled)  # type: ignore[assignment]


class _Gated(torch.autograd.Function):
    """Hands its input on; the gradient of the gate is what the input contributes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_LI: Tensor, *kind: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind = kind
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0], _contributions(x, grads[0], _Kind(*ctx.kind)), None, None, None, None


def _contributions(x: Tensor, grad: Tensor, kind: _Kind) -> Tensor:
    """Shape ``(L, I)``: of one call."""
    if x.ndim < kind.batched:
        x, grad = x.unsqueeze(0), grad.unsqueeze(0)
    elif kind.time_first:
        x, grad = x.transpose(0, 1), grad.transpose(0, 1)
    return taylor_contributions(x, grad, dim=1 if kind.maps else -1, positions=kind.positions)


def _entries(x: Tensor, kind: _Kind) -> int:
    """L, of one call."""
    return 1 if x.ndim < kind.batched else x.shape[1 if kind.time_first else 0]
