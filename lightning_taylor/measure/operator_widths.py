"""Which sizes of an operator's call change with the channels of a network: two widths, in and out, or one size.

A convolution without groups and a matrix product have two widths. Every other operator has a size.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from lightning_taylor.measure.dry_pass import OperatorCall, TensorSpec

__all__ = [
    "kind_of",
    "size_of",
    "widths_of",
    "with_widths",
]

_PRODUCTS = ("aten.mm.default", "aten.addmm.default")


def widths_of(call: OperatorCall) -> tuple[float, float] | None:
    """Return the widths in and out of a convolution without groups or a matrix product; None for anything else."""
    specs = call.specs
    if str(call.func) in _PRODUCTS:
        return float(specs[-2].shape[-1]), float(specs[-1].shape[-1])
    if str(call.func) == "aten.convolution.default" and call.leaves[-1] == 1 and not _transposed(call):
        return float(specs[1].shape[1]), float(specs[1].shape[0])
    return None


def size_of(call: OperatorCall) -> float:
    """Return how many numbers go in."""
    return float(sum(spec.entries for spec in call.specs))


def kind_of(call: OperatorCall) -> Hashable:
    """Return what calls have in common that differ in their widths alone, or in their size.

    Example:
        >>> import torch
        >>> f32, product = torch.float32, torch.ops.aten.mm.default
        >>> wide, narrow, longer = (
        ...     OperatorCall(product, (TensorSpec((rows, 8), f32, (0, 1)), TensorSpec((8, o), f32, (0, 1))), None)
        ...     for rows, o in ((4, 64), (4, 16), (5, 64))
        ... )
        >>> kind_of(wide) == kind_of(narrow), kind_of(wide) == kind_of(longer)
        (True, False)
    """
    return (str(call.func), len(call.specs)) if widths_of(call) is None else with_widths(call, 1, 1).key


def with_widths(call: OperatorCall, i: int, o: int) -> OperatorCall:
    """Return a call that has two widths at other widths in and out."""
    specs = call.specs
    if str(call.func) in _PRODUCTS:
        *bias, x, weight = specs
        new = [*(replace(b, shape=(*b.shape[:-1], o)) for b in bias), _with(x, -1, i), _with(_with(weight, 0, i), 1, o)]
    else:
        x, weight, *bias = specs
        new = [_with(x, 1, i), _with(_with(weight, 0, o), 1, i), *(_with(b, 0, o) for b in bias)]
    left = iter(new)
    return replace(call, leaves=tuple(next(left) if isinstance(leaf, TensorSpec) else leaf for leaf in call.leaves))


def _transposed(call: OperatorCall) -> bool:
    """Whether a convolution's weight has its input channels first."""
    return any(leaf is True for leaf in call.leaves)


def _with(spec: TensorSpec, dim: int, size: int) -> TensorSpec:
    shape = list(spec.shape)
    shape[dim] = size
    return replace(spec, shape=tuple(shape))
