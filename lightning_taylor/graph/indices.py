"""Which channels to remove, as a user may write it: checked, and in one form.

Shape legend: R = channels that go.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["checked_indices", "some"]


def checked_indices(name: str, indices: Tensor | Iterable[int], size: int) -> Tensor:
    """A decision's indices as int64 on the CPU.

    Args:
        name: the group's, for the message.
        indices: what the user gave.
        size: how many channels the group has.

    Raises:
        ValueError: if they are no whole numbers, out of range, not sorted and unique, or all that the group has.
    """
    index_R = _whole_numbers(name, indices)
    _check_indices(name, index_R, size)
    return index_R


def _whole_numbers(name: str, indices: Tensor | Iterable[int]) -> Tensor:
    """The indices as int64 on the CPU; what is no whole number is refused, not rounded."""
    try:
        given = indices if isinstance(indices, Tensor) else torch.as_tensor(list(indices))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"group {name!r}: indices must be whole numbers, got {indices!r}") from error
    if given.dtype is torch.bool:
        raise ValueError(f"group {name!r}: indices must be whole numbers; of a mask take mask.nonzero().flatten()")
    if given.numel() and (given.is_floating_point() or given.is_complex()):
        raise ValueError(f"group {name!r}: indices must be whole numbers, got {given.dtype}: {given.tolist()}")
    return given.to("cpu", torch.int64)


def _check_indices(name: str, index_R: Tensor, size: int) -> None:
    index = index_R.numpy()
    if index.ndim != 1:
        raise ValueError(f"group {name!r}: indices must be one-dimensional, got shape {index.shape}")
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(
            f"group {name!r} has channels 0 to {size - 1}, got indices from {index.min()} to "
            f"{index.max()}; indices count in the current width"
        )
    if not (index[1:] > index[:-1]).all():
        raise ValueError(f"group {name!r}: indices must be sorted and unique, got {index.tolist()[:16]}")
    if index.size >= size:
        raise ValueError(f"group {name!r} has {size} channels and cannot lose all of them")


def some(names: Iterable[str], most: int = 8) -> str:
    """The first few names, for a message."""
    listed = [repr(n) for n in names]
    tail = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + tail if listed else "none"
