"""Nested inputs of a model: what is in them, how many examples they hold, and calls that can be made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.utilities.nested import leaves_in, mapped, parts_of

__all__ = [
    "ForwardCall",
    "Inputs",
    "batch_size",
    "cast",
    "cast_call",
    "copied_like",
    "disturb_examples",
    "evaluating",
    "examples_in",
    "few_examples",
    "few_of",
    "moved",
    "runner",
    "tensors_in",
    "with_examples",
]


_MOST_COLORS = 4  # of an image without a leading dimension


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """One call of a module: its qualified name in the model ("" is the model itself) and what it was given."""

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def few_of(call: ForwardCall, batch: int, most: int = 1) -> ForwardCall:
    """The same call with its leading dimension of ``batch`` cut to ``most``."""
    return _each_argument(call, lambda value: few_examples(value, batch, most))


def cast_call(call: ForwardCall, dtype: torch.dtype) -> ForwardCall:
    """The same call with every floating-point tensor in another precision."""
    return _each_argument(call, lambda value: cast(value, dtype))


def _each_argument(call: ForwardCall, change: Callable[[Any], Any]) -> ForwardCall:
    # One by one: the tuple of the arguments is no container of the user's, and never a list of examples.
    return ForwardCall(call.module, tuple(map(change, call.args)), {k: change(v) for k, v in call.kwargs.items()})


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested containers and objects, in order; see ``nested``."""
    return (leaf for leaf in leaves_in(values) if isinstance(leaf, Tensor))


def cast(values: Any, dtype: torch.dtype) -> Any:
    """Copy nested inputs, with every floating-point tensor in another precision."""
    return _map(values, lambda t: t.detach().to(dtype) if t.is_floating_point() else t.detach().clone())


def batch_size(values: Any) -> int:
    """Count the examples: the length of a list of them, else the leading dimension of the first tensor; 1 if none.

    A list of examples is one of images, or of dicts and objects with tensors of different lengths. Tensors that are
    single numbers, such as the weight of a loss, have no examples.

    Example:
        >>> batch_size({"temperature": torch.tensor(0.1), "image": torch.zeros(8, 3, 4, 4), "label": torch.zeros(8)})
        8
    """
    count = _counted(values, {})
    return 1 if count is None else count


def _counted(values: Any, entered: dict[int, Any]) -> int | None:
    """Count the examples in what was not entered before; None where no tensor has a dimension."""
    if isinstance(values, Tensor):
        return values.shape[0] if values.ndim else None
    if id(values) in entered:  # a graph, whose nodes know each other
        return None
    entered[id(values)] = values
    if _is_list_of_images(values) or _is_list_of_records(values):
        return len(values)
    counts = (_counted(part, entered) for part in parts_of(values))
    return next((count for count in counts if count is not None), None)


def few_examples(values: Any, batch: int, most: int) -> Any:
    """Cut nested inputs with a leading dimension of ``batch``, and lists of so many examples, to ``most``."""

    def fewer(container: Any) -> Any:
        return type(container)(container[:most]) if _lists_examples(container, batch) else container

    return _map(values, lambda t: t[:most] if t.ndim and t.shape[0] == batch else t, fewer)


def disturb_examples(values: Any, batch: int, rows: Sequence[int]) -> Any:
    """Return nested inputs of ``batch`` examples in which those that the rows name have other numbers.

    Whole numbers of one dimension are labels, by which code may choose what it does: they stay.
    """
    generator = torch.Generator().manual_seed(0)

    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            return tensor * 0.8 + noise * (tensor.std(correction=0) + 0.1)
        return tensor.roll(1, -1) if tensor.ndim > 1 else tensor

    def disturbed(tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] != batch:
            return tensor
        tensor = tensor.clone()
        tensor[list(rows)] = other(tensor)[list(rows)]
        return tensor

    def listed(container: Any) -> Any:
        # Tensors that are all as long as the batch are batches, also where they could be images of as many colours.
        batches = all(t.ndim and t.shape[0] == batch for t in tensors_in(container))
        if batches or not _lists_examples(container, batch):
            return container
        return type(container)(_map(x, other) if i in rows else x for i, x in enumerate(container))

    return _map(values, disturbed, listed)


def _is_list_of_images(values: Any) -> bool:
    # Not two batches of signals, (N, C, L) each, as a loader collates pairs of them.
    return isinstance(values, list) and bool(values) and all(_is_image(v) for v in values)


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] <= _MOST_COLORS


def _is_list_of_records(values: Any) -> bool:
    """Whether each entry is an example, as a dict or an object: what is in them counts different things."""
    if not isinstance(values, list) or not all(map(_is_record, values)):
        return False
    lengths = {t.shape[0] if t.ndim else None for t in tensors_in(values)}
    return len(lengths) > 1 or None in lengths


def _is_record(value: Any) -> bool:
    return not isinstance(value, Tensor | list | tuple) and next(tensors_in(value), None) is not None


def _lists_examples(values: Any, batch: int) -> bool:
    """Whether this is a list with one entry for each of so many examples, and no list of ``batch`` batches."""
    if not isinstance(values, list | tuple) or hasattr(values, "_fields") or len(values) != batch:
        return False
    if _is_list_of_images(values):
        return True
    if isinstance(values, tuple) and not all(map(_is_record, values)):
        return False
    held = [list(tensors_in(value)) for value in values]
    return all(held) and any(not t.ndim or t.shape[0] != batch for tensors in held for t in tensors)


def _map(values: Any, change: Callable[[Tensor], Any], special: Callable[[Any], Any] | None = None) -> Any:
    return mapped(values, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, special)


def runner(net: nn.Module, calls: Sequence[ForwardCall]) -> Callable[[], list[Any]]:
    """A function that makes these calls on a net and returns what they gave."""

    def run() -> list[Any]:
        return [net.get_submodule(c.module)(*c.args, **c.kwargs) for c in calls]

    return run


def examples_in(calls: Sequence[ForwardCall]) -> int:
    """Count the examples that calls are given; see ``batch_size``."""
    return batch_size([(c.args, dict(c.kwargs)) for c in calls])


def with_examples(calls: Sequence[ForwardCall], batch: int) -> list[ForwardCall]:
    """The calls with another number of examples: their own from the first on, and again from there if too few.

    As they are, where a tensor may count the examples in a dimension behind its first, as the state of a recurrent
    layer does: nothing says so, and cut without it the others would not fit.

    Example:
        >>> x, row, state = torch.zeros(8, 5), torch.zeros(1, 5), torch.zeros(1, 8, 16)
        >>> [[tuple(t.shape) for t in with_examples([ForwardCall("", (x, y))], 3)[0].args] for y in (row, state)]
        [[(3, 5), (1, 5)], [(8, 5), (1, 8, 16)]]
    """
    own = examples_in(calls)
    if own in (0, batch) or (own > 1 and any(own in t.shape[1:] for t in _of_no_example(calls, own))):
        return list(calls)
    rows = [row % own for row in range(batch)]

    def taken(container: Any) -> Any:
        return type(container)(container[row] for row in rows) if _lists_examples(container, own) else container

    def change(value: Any) -> Any:
        return _map(value, lambda t: t[rows] if t.ndim and t.shape[0] == own else t, taken)

    return [_each_argument(call, change) for call in calls]


def _of_no_example(calls: Sequence[ForwardCall], batch: int) -> list[Tensor]:
    """The tensors whose first dimension counts no examples, and that are no part of one in a list."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.shape[0] != batch:
            found.append(tensor)
        return tensor

    def others(container: Any) -> Any:
        return None if _lists_examples(container, batch) else container

    for call in calls:
        _each_argument(call, lambda value: _map(value, note, others))
    return found


def copied_like(calls: Sequence[ForwardCall], like: Tensor) -> list[ForwardCall]:
    """Copy calls to the device of a parameter, without graphs, and floating-point numbers to its precision."""

    def copied(t: Tensor) -> Tensor:
        return t.detach().to(like.device, like.dtype if t.is_floating_point() else t.dtype, copy=True)

    return [_each_argument(call, lambda value: _map(value, copied)) for call in calls]


def moved(values: Any, device: torch.device) -> Any:
    """Copy nested inputs to another device."""
    return _map(values, lambda t: t.to(device))


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
        return list(tensors_in((self.args, dict(self.kwargs))))

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

    def split(self, size: int) -> list[Inputs]:
        """In pieces of ``size`` examples, of which the last may have fewer; tensors that count none are in each."""

        def piece(first: int) -> Inputs:
            return self._map(lambda t: t[first : first + size] if self.counts_examples(t) else t)

        return [piece(first) for first in range(0, self.batch, size)]

    def to(self, device: torch.device) -> Inputs:
        """The same on another device."""
        return self._map(lambda t: t.to(device))

    def run(self, model: Callable[..., Any]) -> Any:
        """Call a model on a copy of these: some write into what they are given."""
        fresh = self._map(torch.clone)
        return model(*fresh.args, **fresh.kwargs)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        args, kwargs = _map((self.args, dict(self.kwargs)), change)
        return Inputs(args, kwargs)
