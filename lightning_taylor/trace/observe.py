"""Running the private copy: both paths, in the precision that it runs in, and what its layers read on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.trace.forward import quiet, unchanged
from lightning_taylor.trace.program import Program
from lightning_taylor.utilities.calls import tensors_in

__all__ = ["Observation", "Paths", "observe", "settle_precision"]

READING = (_ConvNd, nn.Linear)

Paths = Sequence[bool]
"""False for the evaluation path, True for the training path; in this order."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What one run of the paths shows: every output, and what every layer read.

    Attributes:
        outputs: the floating-point tensors that were returned, in order.
        reads: (path, layer, number of its call) -> its input.
    """

    outputs: list[Tensor]
    reads: dict[tuple[bool, str, int], Tensor]


def observe(net: nn.Module, program: Program, dtype: torch.dtype, paths: Paths = (False, True)) -> Observation:
    """Run these paths of a copy, and note what comes out and what its layers read."""
    outputs: list[Tensor] = []
    reads: dict[tuple[bool, str, int], Tensor] = {}
    for training in paths:
        with unchanged(net, training, step=program.step is not None), quiet(dtype=dtype), _noting(net, training, reads):
            for out in program.run(net, training=training):
                outputs.extend(t.detach().clone() for t in tensors_in(out) if t.is_floating_point())
    return Observation(outputs, reads)


@contextmanager
def _noting(net: nn.Module, training: bool, reads: dict[tuple[bool, str, int], Tensor]) -> Iterator[None]:
    """Note the input of every layer that has a weight for each of its input channels."""
    calls: Counter[str] = Counter()
    handles = []
    for name, module in net.named_modules():
        if not isinstance(module, READING):
            continue

        def note(_module: nn.Module, args: Any, name: str = name) -> None:
            if args and isinstance(args[0], Tensor):
                reads[training, name, calls[name]] = args[0].detach().clone()
                calls[name] += 1

        handles.append(module.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def settle_precision(net: nn.Module, program: Program) -> tuple[torch.dtype, Program, Program, Exception | None]:
    """Find how a copy can be run: in double precision on one example if it runs that way, and reaches its layers.

    A mask over the batch may leave out the first example; then more of them are tried.

    Returns:
        The precision, the program on one example (on all if it knows its batch), and on two (on one); and what the
        step raised, if only its calls are in them.

    Raises:
        UnsupportedModelError: if neither the step nor its calls run.
    """
    own = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    calls = program.without_step()
    ways = [(torch.float64, calls), (own, calls)]
    failure: Exception | None = None
    of_step: Exception | None = None
    for dtype, whole in [(torch.float64, program), *ways] if program.step is not None else ways:
        # Not net.to(dtype): that would cut complex numbers to their real part.
        net._apply(lambda t, dtype=dtype: t.to(dtype) if t.is_floating_point() else t)
        settled, error = _settle_examples(net, whole, dtype)
        if settled is not None:
            return dtype, *settled, of_step
        if whole.step is not None:
            of_step = error
        else:
            failure = error
    raise UnsupportedModelError(
        f"the forward pass of {type(net).__name__} raised {type(failure).__name__} on the example inputs: {failure}"
    ) from failure


def _settle_examples(
    net: nn.Module, whole: Program, dtype: torch.dtype
) -> tuple[tuple[Program, Program] | None, Exception | None]:
    """Return the program on few examples and on two; or None, and why it does not run."""
    failure: Exception | None = None
    settled: tuple[Program, Program] | None = None
    for before, most in pairwise((0, 1, 2, 8, 0) if whole.step is not None else (0, 1, 0)):
        if whole.step is not None and before >= whole.examples:
            break  # It had all of them already.
        given = _with_forward(net, (whole.few(most) if most else whole).cast(dtype), dtype)
        try:
            seen = observe(net, given, dtype)
            if whole.step is not None and not any(bool(t.isfinite().any()) for t in seen.outputs):
                raise ValueError("the training step returned no loss that is a number")
        except Exception as error:
            failure = error
            continue
        _check_finite(net, seen.outputs)
        two = replace(whole, forward=given.forward and whole.with_forward(net).forward).few(max(2, most)).cast(dtype)
        complete = all(t.numel() for t in seen.reads.values()) and all(bool(t.isfinite().any()) for t in seen.outputs)
        if complete or whole.step is None:
            return (given, two if most else given), None
        settled = settled or (given, two if most else given)
    return settled, failure


def _with_forward(net: nn.Module, program: Program, dtype: torch.dtype) -> Program:
    """Return the program with a call of the whole module, if that runs on what its first part is given."""
    whole = program.with_forward(net)
    if program.step is None or whole.forward is None:
        return program
    try:
        with unchanged(net, False), quiet(dtype=dtype):
            out = net(*whole.forward.args, **whole.forward.kwargs)
    except Exception:
        return program
    return whole if next(tensors_in(out), None) is not None else program


def _check_finite(net: nn.Module, outputs: list[Tensor]) -> None:
    """Outputs without a number agree with any others, so nothing could be proven by them."""
    if outputs and not any(bool(t.isfinite().any()) for t in outputs if t.numel()):
        names = [name for name, p in net.named_parameters() if not bool(p.isfinite().all())]
        cause = f"{names[0]!r} is not finite" if names else "look at the example inputs"
        raise UnsupportedModelError(
            f"the forward pass of {type(net).__name__} gives no finite number on the example inputs: {cause}"
        )
