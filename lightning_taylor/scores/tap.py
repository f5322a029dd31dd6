"""Watching what a layer reads: its input and the gradient of that input meet in the backward pass.

Why not a tensor hook: a hook on the input that needs the input refers to itself, a cycle that keeps every activation
alive until the garbage collector runs. Why not a full backward hook: it wraps the module in a view that breaks on
in-place activations, and does not have the input. So the input passes through an identity of our own. It saves the
input for its backward pass, the very storage that the layer saves for its weight's gradient, and the graph frees both
together. Gradient checkpointing sees an ordinary saved tensor, which it packs, recomputes and unpacks.

Compiled code breaks its graph at the tap: dynamo cannot follow a backward pass that writes into a Python object.

How it could still fail: a layer with a frozen weight does not save its input, so a model may overwrite that input in
place afterwards; with the tap, autograd notices and raises in the backward pass.

Shape legend: L = leading entries as the layer saw them, I = input channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_taylor.scores.formulas import Positions, taylor_contributions

__all__ = ["Tap"]


@final
class Tap:
    """A forward pre-hook that gathers the contributions of one layer's input channels, call by call.

    Args:
        module: a convolution, transposed convolution, linear or recurrent layer; not kept.
        positions: what is done over positions.
    """

    def __init__(self, module: nn.Module, positions: Positions) -> None:
        self._maps = isinstance(module, _ConvNd)
        self._batched = len(module.kernel_size) + 2 if isinstance(module, _ConvNd) else 2
        self._time_first = False
        if isinstance(module, nn.RNNBase):
            self._batched, self._time_first = 3, not module.batch_first
        self._positions: Positions = positions
        self._calls: list[Tensor] = []
        self._kept: list[Tensor] = []
        self.paused = False

    @torch.compiler.disable
    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Called before the layer's forward pass: let its input pass through the identity."""
        x = args[0] if args else kwargs.get("input")
        if self.paused or not (torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad):
            return None
        tapped = _Identity.apply(x, self)
        return ((tapped, *args[1:]), kwargs) if args else (args, {**kwargs, "input": tapped})

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        # A copy of the model (an averaged one, a pickled one) carries a hook that does nothing.
        return _make_idle, ()

    def add(self, x: Tensor, grad: Tensor) -> None:
        """Gather one call's contributions, in the backward pass."""
        if x.ndim < self._batched:
            x, grad = x.unsqueeze(0), grad.unsqueeze(0)
        elif self._time_first:
            x, grad = x.transpose(0, 1), grad.transpose(0, 1)
        # Detached, or a backward pass with create_graph would keep its graph alive in here. And without autocast,
        # which a manual backward inside of training_step would apply to the product.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            dim = 1 if self._maps else -1
            self._calls.append(taylor_contributions(x.detach(), grad.detach(), dim=dim, positions=self._positions))

    def drop(self) -> None:
        """Forget what was gathered since the last ``keep``."""
        self._calls = []

    def keep(self) -> None:
        """What was gathered until now is of the loss's own backward pass."""
        self._kept += self._calls
        self._calls = []

    def take(self) -> list[Tensor]:
        """The contributions since the last ``take``, each of shape ``(L, I)``, and forget them.

        Those that were kept; or all, if none was: nobody said which passes are the loss's own.
        """
        calls = self._kept or self._calls
        self._kept, self._calls = [], []
        return calls


class _Identity(torch.autograd.Function):
    """Hands its input on, and in the backward pass shows input and gradient to a tap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tap: Tap) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tap = tap
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        ctx.tap.add(x, grads[0])
        return grads[0], None


def _idle(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    return None


def _make_idle() -> Callable[..., None]:
    return _idle
