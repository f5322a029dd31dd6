"""How far the outputs of a file are from the model's: to the last digits, or as far as a lower precision takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_taylor.errors import ExportError

__all__ = ["Rounding", "largest_difference", "rounding_of"]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference that is rounding and no mistake, as a share of the output's largest absolute value."""


@dataclass(frozen=True)
class Rounding:
    """What a lower precision costs.

    Attributes:
        relative_error: root mean square of the differences between an output of the file and the model's, as a share
            of that of the output itself; of the output with the largest.
        relative_difference: largest difference between an output of the file and the model's, as a share of the
            largest absolute value of that output.
        agreement: share of the examples for which the largest number of a row is at the same place, so that a
            classifier says the same; of the first output of shape (N, C) with C > 1, None if there is none.
        examples: how many examples were compared.
    """

    relative_error: float
    relative_difference: float
    agreement: float | None
    examples: int

    def __str__(self) -> str:
        shares = f"{self.relative_difference:.2%} of the largest output (root mean square {self.relative_error:.2%})"
        if self.agreement is None:
            return f"{shares} over {self.examples} examples"
        return f"{shares}; same top class for {self.agreement:.1%} of {self.examples} examples"


def largest_difference(expected: Any, found: Any, tolerance: float | None, what: str = "the file") -> float:
    r"""Largest absolute difference between two nestings of tensors, if it is small enough.

    .. math::  \max_i |e_i - f_i| \le t \max_i |e_i|

    for each floating-point tensor (``t`` alone where all of ``e`` is zero), with NaN and infinities at the same
    places; other tensors have to be equal.

    Args:
        expected: the model's outputs.
        found: the file's, nested in any way, in the same order.
        tolerance: ``t``; by default 1e-4 for float32, 1e-8 for float64, 1e-2 for float16 and 5e-2 for bfloat16.
        what: the name of the file, for the error.

    Raises:
        ExportError: naming the largest difference.

    Example:
        >>> largest_difference(torch.tensor([1.0, 100.0]), {"out": torch.tensor([1.0, 100.001])}, None) < 0.002
        True
        >>> largest_difference(torch.ones(2), [torch.tensor([1.0, 1.5])], 0.1)
        Traceback (most recent call last):
        lightning_taylor.errors.ExportError: the file differs from the model by 0.5 where 0.1 is allowed ...
    """
    pairs = _pairs(expected, found, what)
    for old, new in pairs:
        if not old.is_floating_point() and not torch.equal(old, new.to(old.dtype)):
            raise ExportError(f"{what} gives another {old.dtype} output than the model")
    floating = [(old, new) for old, new in pairs if old.is_floating_point()]
    return max((_difference(old, new, tolerance, what) for old, new in floating), default=0.0)


def rounding_of(
    expected: Sequence[Any], found: Sequence[Any], examples: Sequence[int], tolerance: float, what: str = "the file"
) -> tuple[float, Rounding]:
    r"""Largest absolute difference between the outputs of several batches, and what to say of it.

    With ``e`` and ``f`` for the model's and the file's numbers of one output in all of the batches,

    .. math::  \sum_i (e_i - f_i)^2 \le t^2 \sum_i e_i^2

    has to hold for each floating-point output (unless all of ``e`` is zero: the root mean square of ``f`` is then at
    most ``t``), with NaN and infinities at the same places. Of the whole numbers in
    an output, such as classes, a share of ``t`` may differ.

    Args:
        expected: the model's outputs for each batch.
        found: the file's.
        examples: how many examples each of the first batches has; those after them repeat examples, and count in the
            difference alone.
        tolerance: ``t``.
        what: the name of the file, for the error.

    Raises:
        ExportError: naming the difference.

    Example:
        >>> logits = torch.tensor([[1.0, 4.0], [2.0, 1.9]])
        >>> print(rounding_of([logits], [logits + torch.tensor([0.0, 0.2])], [2], tolerance=0.1)[1])
        5.00% of the largest output (root mean square 5.70%); same top class for 50.0% of 2 examples
    """
    batches = [_pairs(e, f, what) for e, f in zip(expected, found, strict=True)]
    absolute = relative = error = 0.0
    for output in zip(*batches, strict=True):
        old, new = (torch.cat([tensor.flatten() for tensor in side]) for side in zip(*output, strict=True))
        if old.is_floating_point():
            old, new = _finite(old, new, what)
            largest = _largest(old - new)
            absolute, relative = max(absolute, largest), max(relative, largest / (_largest(old) or 1.0))
            share = _root_mean_square(old - new) / (_root_mean_square(old) or 1.0)
            error = max(error, share)
        else:
            share = float((old != new).sum()) / max(1, old.numel())
        if not share <= tolerance:
            raise ExportError(
                f"{what} differs from the model by {share:.2%} ({_MEANT[old.is_floating_point()]}) where "
                f"{tolerance:.2%} is allowed; if that is rounding, give a larger tolerance"
            )
    return absolute, Rounding(error, relative, _agreement(batches[: len(examples)]), sum(examples))


_MEANT = {True: "root mean square, as a share of the output's", False: "of whole numbers"}


def _agreement(batches: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> float | None:
    rows = next((i for i, (old, _) in enumerate(batches[0]) if _is_rows(old)), None)
    if rows is None:
        return None
    same = torch.cat([old.argmax(1) == new.argmax(1) for old, new in (batch[rows] for batch in batches)])
    return float(same.double().mean())


def _is_rows(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[1] > 1


def _pairs(expected: Any, found: Any, what: str) -> list[tuple[Tensor, Tensor]]:
    old, new = _tensors(expected), _tensors(found)
    if [tuple(t.shape) for t in old] != [tuple(t.shape) for t in new]:
        shapes = [[tuple(t.shape) for t in side] for side in (new, old)]
        raise ExportError(f"{what} gives outputs of shapes {shapes[0]}, the model {shapes[1]}")
    return list(zip(old, new, strict=True))


def _difference(expected: Tensor, found: Tensor, tolerance: float | None, what: str) -> float:
    share = TOLERANCE.get(expected.dtype, 1e-2) if tolerance is None else tolerance
    old, new = _finite(expected, found, what)
    difference = _largest(old - new)
    limit = share * (_largest(old) or 1.0)
    if difference > limit:
        raise ExportError(
            f"{what} differs from the model by {difference:.3g} where {limit:.3g} is allowed ({share:g} of the "
            "largest output); if that is rounding, give a larger tolerance"
        )
    return difference


def _finite(expected: Tensor, found: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """What is neither NaN nor infinite, which has to be the same in both."""
    old, new = expected.double(), found.double()
    finite = old.isfinite()
    if not torch.equal(old[~finite].nan_to_num(), new[~finite].nan_to_num()) or not bool(new[finite].isfinite().all()):
        raise ExportError(f"{what} gives NaN or infinity where the model does not, or the other way round")
    return old[finite], new[finite]


def _largest(numbers: Tensor) -> float:
    return float(numbers.abs().max()) if numbers.numel() else 0.0


def _root_mean_square(numbers: Tensor) -> float:
    return float(numbers.square().mean().sqrt()) if numbers.numel() else 0.0


def _tensors(values: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(values)
    return [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, Tensor)]
