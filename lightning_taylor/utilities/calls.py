"""Nested inputs of a model: what is in them, how many examples they hold, and calls that can be made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = [
    "ForwardCall",
    "Inputs",
    "batch_size",
    "cast",
    "cast_call",
    "evaluating",
    "few_examples",
    "few_of",
    "moved",
    "one_example",
    "repeated",
    "runner",
    "tensors_in",
]


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """One call of a module: its qualified name in the model ("" is the model itself) and what it was given."""

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def few_of(call: ForwardCall, batch: int, most: int = 1) -> ForwardCall:
    """The same call with its leading dimension of ``batch`` cut to ``most``."""
    return ForwardCall(call.module, few_examples(call.args, batch, most), few_examples(dict(call.kwargs), batch, most))


def cast_call(call: ForwardCall, dtype: torch.dtype) -> ForwardCall:
    """The same call with every floating-point tensor in another precision."""
    return ForwardCall(call.module, cast(call.args, dtype), cast(dict(call.kwargs), dtype))


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dicts and plain objects, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, tuple | list | set | frozenset):
        for value in values:
            yield from tensors_in(value)
    elif hasattr(values, "__dict__") and not isinstance(values, nn.Module | type):
        yield from tensors_in(vars(values))
    elif is_dataclass(values) and not isinstance(values, type):  # one with slots
        for entry in fields(values):
            yield from tensors_in(getattr(values, entry.name, None))


def cast(values: Any, dtype: torch.dtype) -> Any:
    """Nested inputs with every floating-point tensor in another precision."""
    return _map(values, lambda t: t.detach().to(dtype) if t.is_floating_point() else t.detach().clone())


def batch_size(values: Any) -> int:
    """The leading dimension of the first tensor in nested inputs; the length of a list of images; 1 if none."""
    if _is_list_of_images(values):
        return len(values)
    if isinstance(values, Tensor):
        return values.shape[0] if values.ndim else 1
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    for value in inner:
        if next(tensors_in(value), None) is not None:
            return batch_size(value)
    return 1


def few_examples(values: Any, batch: int, most: int) -> Any:
    """Nested inputs whose leading dimension of ``batch`` is cut to ``most``."""
    if _is_list_of_images(values) and len(values) == batch:
        return type(values)(list(values)[:most])
    if isinstance(values, list | tuple) and any(_is_list_of_images(v) for v in values):
        return type(values)(few_examples(v, batch, most) for v in values)
    return _map(values, lambda t: t[:most] if t.ndim and t.shape[0] == batch else t)


def _is_list_of_images(values: Any) -> bool:
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(v, Tensor) and v.ndim == 3 for v in values)


def _map(values: Any, change: Any) -> Any:
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {k: _map(v, change) for k, v in values.items()}
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(_map(v, change) for v in values))
    if isinstance(values, list | tuple):
        return type(values)(_map(v, change) for v in values)
    return values


def runner(net: nn.Module, calls: Sequence[ForwardCall]) -> Callable[[], list[Any]]:
    """A function that makes these calls on a net and returns what they gave."""

    def run() -> list[Any]:
        return [net.get_submodule(c.module)(*c.args, **c.kwargs) for c in calls]

    return run


def one_example(calls: Sequence[ForwardCall]) -> tuple[list[ForwardCall], int]:
    """The calls cut to one example, which is cheap to keep, and how many examples they had."""
    batch = batch_size([(c.args, dict(c.kwargs)) for c in calls])
    return [few_of(c, batch) for c in calls], batch


def repeated(call: ForwardCall, batch: int, like: Tensor) -> ForwardCall:
    """A call of one example as one of ``batch`` equal ones.

    Args:
        call: tensors in it with a leading dimension of 1 are repeated; others stay.
        batch: number of examples.
        like: a parameter of the net: gives the device, and the dtype of floating-point inputs.
    """

    def repeat(value: Any) -> Any:
        if isinstance(value, Tensor):
            value = value.detach().to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            return value.repeat(batch, *[1] * (value.ndim - 1)) if value.ndim and value.shape[0] == 1 else value
        if isinstance(value, dict):
            return {k: repeat(v) for k, v in value.items()}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(repeat(v) for v in value)
        return value

    return ForwardCall(call.module, repeat(call.args), repeat(dict(call.kwargs)))


def moved(values: Any, device: torch.device) -> Any:
    """Nested inputs on another device."""
    if isinstance(values, Tensor):
        return values.to(device)
    if isinstance(values, dict):
        return {key: moved(value, device) for key, value in values.items()}
    if isinstance(values, list | tuple) and not hasattr(values, "_fields"):
        return type(values)(moved(value, device) for value in values)
    return values


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass(frozen=True, eq=False)
class Inputs:
    """Arguments of one ``forward`` call.

    Attributes:
        args: the positional ones.
        kwargs: those by name.

    Example:
        >>> inputs = Inputs.of({"image": torch.zeros(1, 3, 8, 8), "scale": 2.0})
        >>> inputs.shapes, inputs.with_batch(4).shapes
        (((1, 3, 8, 8),), ((4, 3, 8, 8),))
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(example_inputs: Any) -> Inputs:
        """From a tensor, a tuple of arguments or a dict of arguments by name, as ``trace_channels`` takes them.

        Raises:
            ValueError: if there is no tensor in it, or no example.
        """
        if isinstance(example_inputs, Inputs):
            return example_inputs
        if isinstance(example_inputs, Mapping):
            found = Inputs((), dict(example_inputs))
        else:
            found = Inputs(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))
        if not found.tensors:
            raise ValueError(f"example_inputs has no tensor in it: {example_inputs!r}")
        if not found.batch:
            raise ValueError("example_inputs is a batch without an example; give at least one")
        return found

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor in the arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Their shapes."""
        return tuple(tuple(tensor.shape) for tensor in self.tensors)

    @property
    def batch(self) -> int:
        """The number of examples: the length of the first tensor, 1 if it has no dimension."""
        return batch_size([self.args, dict(self.kwargs)])

    def counts_examples(self, tensor: Tensor) -> bool:
        """Whether a tensor's first dimension is as long as there are examples."""
        return tensor.ndim > 0 and tensor.shape[0] == self.batch

    def with_batch(self, batch: int) -> Inputs:
        """As many examples as asked for, by repeating these from the first; tensors that count none stay."""
        rows = torch.arange(batch) % self.batch
        return self._map(lambda t: t[rows.to(t.device)] if self.counts_examples(t) else t)

    def to(self, device: torch.device) -> Inputs:
        """The same on another device."""
        return self._map(lambda t: t.to(device))

    def run(self, model: Callable[..., Any]) -> Any:
        """Call a model on a copy of these: some write into what they are given."""
        fresh = self._map(torch.clone)
        return model(*fresh.args, **fresh.kwargs)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)
