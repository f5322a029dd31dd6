"""A forward pass that shows the structure and nothing else: no dropout, no batch statistics, no fused shortcuts.

Both the trace and the proof by trial run the training path and the evaluation path. In the training path dropout
would draw differently for a network of another width, and a batch norm over two examples is nearly chaotic; both
act on each channel alone, so leaving them out changes nothing about which channels belong together.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = [
    "Quiet",
    "quiet",
    "unchanged",
]

_DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.dropout_, torch.alpha_dropout, torch.feature_dropout,
}  # fmt: skip

_ATTENTION = tuple(inspect.signature(F.multi_head_attention_forward).parameters)


class Quiet(TorchFunctionMode):
    """Dropout is the identity; batch norm uses its running statistics where it has them.

    Args:
        precision: into which tensors of another are cast where an operator refuses two at once, as when a copy in
            double precision is given ``x.float()``; None to let it refuse.
    """

    def __init__(self, precision: torch.dtype | None = None) -> None:
        super().__init__()
        self._precision = precision

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace a call, or let it through."""
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.multi_head_attention_forward:
            # What it calls is out of sight: a mode is off inside of its own handler.
            kwargs = {**dict(zip(_ATTENTION, args, strict=False)), **kwargs, "dropout_p": 0.0}
            return func(**kwargs)
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            kwargs.pop("dropout_p", None)
            return func(*args[:4], **kwargs)
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            given = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            if self._precision is None or len({t.dtype for t in given}) < 2:
                raise
            return func(*map(self._cast, args), **{name: self._cast(value) for name, value in kwargs.items()})

    def _cast(self, value: Any) -> Any:
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self._precision) if floats else value  # the same tensor if it is of this precision

    def _batch_norm(
        self,
        input: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if input.numel() == 0:  # torch scales it by the first channel's weight, as if that were all of them
            return input
        known = running_mean is not None and running_var is not None
        training = training and not known
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled modules run as plain Python; the compiler is not imported (seconds) for a model that never used it."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def _seed(seed: int, devices: Iterable[int]) -> None:
    """Seed the generators that can be drawn from.

    ``torch.manual_seed`` would seed devices that were never used, too: each call notes its stack, until one is used.
    """
    torch.default_generator.manual_seed(seed)
    for index in devices:
        torch.cuda.default_generators[index].manual_seed(seed)


@contextlib.contextmanager
def quiet(seed: int = 0, dtype: torch.dtype | None = None) -> Iterator[None]:
    """No gradients, fused attention shortcuts off, random numbers seeded and given back, compiled code run eagerly.

    Warnings too: those of the model are given where it really runs.

    Args:
        seed: of every device's default generator inside the block.
        dtype: the default dtype inside the block, for models that make tensors of their own.
    """
    fast, default = torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=devices),
        _eager(),
        torch.autocast("cuda", enabled=False),
        torch.autocast("cpu", enabled=False),
        warnings.catch_warnings(),
    ):
        # The model's own warnings come in its own passes; one about missing gradients would be false here.
        warnings.simplefilter("ignore")
        _seed(seed, devices)
        torch.backends.mha.set_fastpath_enabled(False)
        if dtype is not None:
            torch.set_default_dtype(dtype)
        try:
            with Quiet(dtype):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch.set_default_dtype(default)


@contextmanager
def unchanged(net: nn.Module, training: bool, *, step: bool = False) -> Iterator[None]:
    """Run in training or evaluation mode, with modes and buffers given back; after a step the parameters, too.

    A forward pass that is no step may write into parameters that are not trained: averaged codebooks.
    """
    modes = [(m, m.training) for m in net.modules()]
    written = [*net.buffers(), *(p for p in net.parameters() if step or not p.requires_grad)]
    values = [(t, t.detach().clone()) for t in written]
    # First into training, where modules drop what they kept for evaluation: it is of other values, or other widths.
    net.train(True)
    net.train(training)
    try:
        yield
    finally:
        for module, was in modes:
            module.training = was
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
