"""What a model is run on, with another number of examples where its first dimension counts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_taylor.graph.copying import batch_size

__all__ = ["Inputs"]


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
