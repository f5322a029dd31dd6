"""How two runs of a copy are compared: which numbers can be trusted, and how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_taylor.graph.types import Axis
from lightning_taylor.trace.observe import READING

__all__ = ["input_axes", "is_equal", "largest", "relative_difference", "trusted_outputs"]


def trusted_outputs(steady: list[bool], evaluation: int) -> list[bool]:
    """Which outputs can prove anything: of a path with an unsteady one none, if the other path has none of these.

    Args:
        steady: per output, those of the evaluation path first.
        evaluation: how many these are.
    """
    one, other = steady[:evaluation], steady[evaluation:]
    calm = [bool(path) and all(path) for path in (one, other)]
    return [calm[0]] * len(one) + [calm[1]] * len(other) if any(calm) else steady


def input_axes(net: nn.Module, names: Mapping[int, str]) -> dict[str, tuple[Axis, int]]:
    """Layer -> the axis of its weight that reads its input, and the dimension of the input that the axis reads."""
    axes: dict[str, tuple[Axis, int]] = {}
    for name, module in net.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, READING) or id(weight) not in names:
            continue
        tensor = names[id(weight)]
        if isinstance(module, nn.Linear):
            axes[name] = (tensor, 1), -1
        elif module.groups == 1:
            axes[name] = (tensor, 0 if module.transposed else 1), 1
        elif module.groups == module.in_channels == module.out_channels:
            axes[name] = (tensor, 0), 1
    return axes


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same to the last digit."""
    return one.shape == other.shape and torch.equal(one, other)


def largest(tensor: Tensor) -> float:
    """Return the size of the largest finite entry; 0 if there is none."""
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def relative_difference(one: Tensor, other: Tensor, least: float = 0.0) -> float:
    """Return the largest difference of two tensors, relative to the largest entry; infinite if their shapes differ.

    Args:
        one: the tensor whose entries count.
        other: what it is compared with; infinite entries must be the same.
        least: what the difference is relative to if all entries are smaller.
    """
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    difference, scale = (one - other).abs_().max(), one.abs().max()
    if bool(difference.isfinite() & scale.isfinite()):
        return float(difference) / (max(float(scale), least) or 1.0)
    return _finite_difference(one, other, least)


def _finite_difference(one: Tensor, other: Tensor, least: float) -> float:
    """Compare the finite entries; infinite if others are finite in the other tensor."""
    finite = one.isfinite()
    if not bool((finite == other.isfinite()).all()):
        return float("inf")
    return largest((one - other)[finite]) / (max(largest(one), least) or 1.0)
