"""Which rows of a layer's input belong to which example, found by trial: the rows that change when the example does.

Where a step joins views of its images in one batch (``torch.cat([x, flipped])``), an example is a row of each view;
where windows or frames are folded into the batch, it is several rows in sequence; in a forward pass by chunks, or after
a mask over the batch, it is a row of some call. Shapes cannot tell which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_taylor.graph.row_layout import RowLayout
from lightning_taylor.modules.weight_reads import weight_read_by
from lightning_taylor.trace.forward import quiet, unchanged
from lightning_taylor.trace.program import Program

__all__ = ["find_row_layouts"]

_EXAMPLES = 8
"""In the program that is tried: enough that a chunk of it has several rows."""

Reads = Mapping[str, list[Tensor]]
"""Layer -> its inputs, call by call."""

Read = Callable[[Program], Reads]
"""Runs the training path of a program."""


def find_row_layouts(
    net: nn.Module, program: Program, dtype: torch.dtype, weights: Mapping[int, str]
) -> dict[str, RowLayout]:
    """Find how the layers' inputs hold the examples.

    Args:
        net: a private copy; left as it was.
        program: on all of its examples.
        dtype: the precision that it runs in.
        weights: id of each parameter -> its first qualified name.

    Returns:
        Layer -> layout, of those that do not simply read one row of each example in one call; empty if the program does
        not run on several examples.
    """
    if program.examples < 2:
        return {}
    read = partial(_reads, net, dtype=dtype, weights=weights)
    try:
        tried = [program.few(n).cast(dtype) for n in (2, 3)]
        reads = [read(some) for some in tried]
        # At one number of examples two views of the only one that passes a mask would look like one row of each.
        if all(map(_is_plain, reads, tried)):
            return {}
        several, owners = tried[1], _owners(read, tried[1], reads[1])
        if not _are_in_sequence(owners, several):
            several = program.few(_EXAMPLES).cast(dtype)
            owners = _owners(read, several, read(several))
    except Exception:  # code that knows its batch
        return {}
    plain = RowLayout.of([range(several.examples)], several.examples)
    layouts = {name: RowLayout.of(calls, several.examples) for name, calls in owners.items()}
    return {name: layout for name, layout in layouts.items() if layout != plain}


def _is_plain(reads: Reads, program: Program) -> bool:
    """Whether every layer is called once, with as many rows as there are examples."""
    return all(len(calls) == 1 and len(calls[0]) == program.examples for calls in reads.values())


def _are_in_sequence(owners: Mapping[str, list[list[int]]], program: Program) -> bool:
    """Whether every layer is called once, for all rows of one example after those of the other: windows, frames."""
    numbers = [*range(program.examples)]
    return all(
        len(calls) == 1 and calls[0] == sorted(numbers * (len(calls[0]) // len(numbers))) for calls in owners.values()
    )


def _owners(read: Read, program: Program, before: Reads) -> dict[str, list[list[int]]]:
    """Layer -> the owner of every row of each call: the bits of its number, read off by changing half of the examples.

    ``before`` is what the layers read of the examples as they are. A row that changes with both halves mixes examples;
    one that changes with neither, or whose call has other rows then, has no owner.
    """
    number = {name: [torch.zeros(len(x), dtype=torch.int64) for x in calls] for name, calls in before.items()}
    owned = {name: [torch.ones(len(x), dtype=torch.bool) for x in calls] for name, calls in before.items()}
    for bit in range((program.examples - 1).bit_length()):
        rows = range(program.examples)
        halves = [[row for row in rows if row >> bit & 1 == value] for value in (0, 1)]
        zero, one = (_changed(before, read(program.disturbed(half))) for half in halves)
        for name, calls in before.items():
            for i in range(len(calls)):
                number[name][i] += one[name][i].long() << bit
                owned[name][i] &= one[name][i] != zero[name][i]
    return {
        name: [torch.where(own, n, -1).tolist() for n, own in zip(number[name], owned[name], strict=True)]
        for name in before
    }


def _changed(before: Reads, after: Reads) -> dict[str, list[Tensor]]:
    """Tell which rows changed; all of them, if there are others."""
    changed = {}
    for name, calls in before.items():
        others = after.get(name, [])
        alike = len(calls) == len(others) and all(a.shape == b.shape for a, b in zip(calls, others, strict=True))
        pairs = zip(calls, others if alike else calls, strict=True)
        changed[name] = [(a != b).flatten(1).any(1).cpu() | (not alike) for a, b in pairs]
    return changed


def _reads(net: nn.Module, program: Program, dtype: torch.dtype, weights: Mapping[int, str]) -> Reads:
    """Run the training path, and note what every layer reads that a gradient goes through."""
    step = program.step is not None
    # Gradients tell passes that are scored from those of a teacher; they are seen where a step is one program.
    noting = _Noting(weights, all_of_them=not step)
    with unchanged(net, True, step=step), quiet(dtype=dtype), torch.set_grad_enabled(step), noting:
        for _ in program.run(net, training=True):
            pass
    return noting.reads


class _Noting(TorchFunctionMode):
    """Notes what is read with each weight, whoever calls."""

    def __init__(self, weights: Mapping[int, str], *, all_of_them: bool) -> None:
        super().__init__()
        self._weights, self._all = weights, all_of_them
        self.reads: dict[str, list[Tensor]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = self._weights.get(id(weight_read_by(func, args, kwargs)))
        x = args[0] if args else kwargs.get("input")
        if name is not None and x.ndim > 1 and (self._all or (torch.is_grad_enabled() and x.requires_grad)):
            self.reads[name.rpartition(".")[0]].append(x.detach().clone())
        return func(*args, **kwargs)
