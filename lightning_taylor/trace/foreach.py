"""Operators on lists of tensors (``torch._foreach_mul_``), as the loop over single tensors that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_taylor.trace.operator_call import operator_name

__all__ = ["is_foreach", "run_one_by_one"]

_PREFIX = "_foreach_"

_KEYWORDS = {"alpha": "alpha", "value": "value", "non_blocking": "non_blocking"}
"""Arguments that the method of a single tensor takes by a name."""

_SCALED = {**_KEYWORDS, "scalars": "value", "scalar": "value"}
"""Of ``addcmul`` and ``addcdiv``."""


def is_foreach(func: Any) -> bool:
    """Return whether an operator is one on lists, for which a tensor has a method."""
    return operator_name(func).startswith(_PREFIX) and hasattr(Tensor, _method(func))


def run_one_by_one(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor] | None:
    """Run the loop: the results, or nothing for an operator that writes into its first list.

    Example:
        >>> import torch
        >>> ones = [torch.ones(2), torch.ones(1)]
        >>> run_one_by_one(torch.ops.aten._foreach_add.Scalar, (ones, 2), {})
        [tensor([3., 3.]), tensor([3.])]
    """
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    first, *others = names
    keywords = _SCALED if _method(func).startswith("addc") else _KEYWORDS
    results = []
    for i, tensor in enumerate(given[first]):
        own = {name: _of_one(given[name], i, len(given[first])) for name in others if name in given}
        positional = [value for name, value in own.items() if name not in keywords]
        named = {keywords[name]: value for name, value in own.items() if name in keywords}
        results.append(getattr(tensor, _method(func))(*positional, **named))
    return results if func._schema.returns else None


def _method(func: Any) -> str:
    return func._schema.name.split("::")[-1].removeprefix(_PREFIX)


def _of_one(value: Any, index: int, count: int) -> Any:
    return value[index] if isinstance(value, list | tuple) and len(value) == count else value
