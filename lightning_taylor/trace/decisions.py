"""Decisions that numbers make in a forward pass: which score comes first, which box goes, what lies above a threshold.

Two networks that compute the same up to rounding still rank two scores that tie as chance has it, and then return other
boxes. So what one run decides is noted, and the run that is compared with it decides likewise wherever it decides by
the same numbers. By other numbers it decides for itself, and the difference shows.

How it could fail: a decision that is made outside of torch (an assignment by SciPy, say) is not seen. Then a tie may
still freeze channels that could go, and never frees one that has to stay.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_taylor.trace.compare import relative_difference
from lightning_taylor.trace.operator_call import operator_name

__all__ = ["DecisionsFollowed", "DecisionsNoted"]

_STEPS = frozenset("ceil floor floor_divide round sign trunc".split())
"""Operators that decide, though what they return is no index and no truth value."""


@dataclass(frozen=True, eq=False)
class _Decision:
    """An operator's arguments, flattened, and what it returned."""

    given: list[Any]
    out: Any


class DecisionsNoted(TorchDispatchMode):
    """A mode that notes what every operator decides by floating-point numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: dict[Any, list[_Decision]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and keep copies if it decides: the pass may write into them later."""
        out = func(*args, **(kwargs or {}))
        if _decides(func, (args, kwargs), out):
            self._noted[func].append(_Decision(_copied(tree_leaves((args, kwargs))), _copied(out)))
        return out

    def find(self, func: Any, number: int) -> _Decision | None:
        """Return what the operator decided in a call, by the number of the call; None if it did not run so often."""
        return self._noted[func][number] if number < len(self._noted[func]) else None


class DecisionsFollowed(TorchDispatchMode):
    """A mode under which operators decide as was noted, if they are given the same numbers up to a tolerance.

    Args:
        noted: what another run decided.
        tolerance: the largest difference from the same number, relative to the largest entry of its tensor.
    """

    def __init__(self, noted: DecisionsNoted, tolerance: float) -> None:
        super().__init__()
        self._noted, self._tolerance = noted, tolerance
        self._calls: dict[Any, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and return the noted decision if it is the one to be made here."""
        out = func(*args, **(kwargs or {}))
        if not _decides(func, (args, kwargs), out):
            return out
        noted = self._noted.find(func, self._calls[func])
        self._calls[func] += 1
        if noted is None or not self._are_same(noted.given, tree_leaves((args, kwargs))):
            return out
        copied = _copied(noted.out)
        return copied if _is_step(func) else tree_map(_following, out, copied)

    def _are_same(self, noted: list[Any], given: list[Any]) -> bool:
        return len(noted) == len(given) and all(map(self._is_same, noted, given))

    def _is_same(self, one: Any, other: Any) -> bool:
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return type(one) is type(other) and one == other
        if one.dtype != other.dtype:
            return False
        if one.is_floating_point():
            # Code may compute a part in lower precision, such as the distances to the entries of a codebook.
            rounding = 8 * torch.finfo(one.dtype).eps
            return relative_difference(one, other) <= max(self._tolerance, rounding)
        return one.shape == other.shape and torch.equal(one, other)


def _decides(func: Any, given: Any, out: Any) -> bool:
    """Return whether an operator makes an index, a truth value or a plain number of floating-point tensors."""
    if not _is_step(func) and (_is_continuous(out) or all(map(_is_continuous, tree_leaves(out)))):
        return False
    if func.is_view or func._schema.is_mutable:
        return False
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(given))


@cache
def _is_step(func: Any) -> bool:
    return operator_name(func) in _STEPS


def _is_continuous(value: Any) -> bool:
    return value is None or (isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()))


def _following(own: Any, noted: Any) -> Any:
    """Return what was noted, but for numbers that were sorted or picked: those are the run's own, and are compared."""
    picked = isinstance(own, Tensor) and own.is_floating_point() and own.shape == noted.shape
    return own if picked else noted


def _copied(values: Any) -> Any:
    return tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, values)
