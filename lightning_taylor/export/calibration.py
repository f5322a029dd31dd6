"""The user's own batches, as they come from a DataLoader, as inputs of ``forward``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from itertools import chain
from typing import Any

from torch import Tensor

from lightning_taylor.utilities.calls import Inputs, tensors_in

__all__ = ["calibration_inputs"]

AT_ONCE = 32
"""Examples in a batch that is cut from one tensor of all."""


def calibration_inputs(
    calibration: Tensor | Iterable[Any] | None, example: Inputs, forward: Callable[..., Any]
) -> list[Inputs]:
    """What ``forward`` takes of each batch.

    Args:
        calibration: batches. Of a list or tuple the first items are taken, as many as ``forward`` is given tensors;
            of a dict those with the names of its arguments. What is no tensor in the example stays as it is there.
            One tensor is all examples at once.
        example: what ``forward`` is given.
        forward: gives names to the positional arguments.

    Raises:
        ValueError: if there is no batch; or if one does not have what is in the example, in its precision and, but
            for the number of examples, its shape.

    Example:
        >>> import torch
        >>> image, label = torch.zeros(4, 3, 8, 8), torch.zeros(4)
        >>> [inputs.shapes for inputs in calibration_inputs([[image, label]], Inputs.of(image[:1]), lambda x: x)]
        [((4, 3, 8, 8),)]
    """
    if calibration is None:
        raise ValueError(
            "precision='int8' needs calibration=: batches of real examples, such as a DataLoader, which set the ranges "
            "of the whole numbers; some hundred examples are enough"
        )
    if isinstance(calibration, Tensor):
        calibration = calibration.split(AT_ONCE) if calibration.numel() else ()
    elif isinstance(calibration, Mapping | str) or not isinstance(calibration, Iterable):
        raise ValueError(
            f"calibration is a {type(calibration).__name__}, and has to be an iterable of batches, such as a DataLoader"
        )
    given = list(signature(forward).parameters)
    found = [_arguments(batch, example, given, f"batch {i} of calibration") for i, batch in enumerate(calibration)]
    if not found:
        raise ValueError("calibration has no batch in it; an iterator that was used up before gives none again")
    return found


def _arguments(batch: Any, example: Inputs, given: Sequence[str], what: str) -> Inputs:
    """What ``forward`` takes of a batch, in the place of what the example has."""
    named = [*zip(given, example.args, strict=False), *example.kwargs.items()]
    if len(named) < len(example.args) + len(example.kwargs):  # of *args, which have no names
        named = [(f"argument {i}", value) for i, value in enumerate(chain(example.args, example.kwargs.values()))]
    names = [name for name, value in named if next(tensors_in(value), None) is not None]
    taken = dict(zip(names, _items(batch, names, dict(named), what), strict=True))
    values = [taken.get(name, value) for name, value in named]
    by_name = zip(example.kwargs, values[len(example.args) :], strict=True)
    found = Inputs(tuple(values[: len(example.args)]), dict(by_name)).to(example.tensors[0].device)
    if not found.tensors or not found.batch or _described(found) != _described(example):
        raise ValueError(
            f"{what} has {_said(found)}, where forward takes {_said(example)}, with any number of examples"
        )
    return found


def _items(batch: Any, names: Sequence[str], example: Mapping[str, Any], what: str) -> list[Any]:
    whole = len(names) == 1 and isinstance(example[names[0]], Mapping)
    if isinstance(batch, Mapping) and not (whole and names[0] not in batch):
        if missing := [name for name in names if name not in batch]:
            raise ValueError(f"{what} has no {', '.join(missing)}, only {', '.join(map(str, batch))}")
        return [batch[name] for name in names]
    if isinstance(batch, list | tuple):
        if len(batch) < len(names):
            raise ValueError(f"{what} has {len(batch)} items, and forward takes {', '.join(names)}")
        return list(batch[: len(names)])
    if len(names) > 1:
        raise ValueError(f"{what} is a {type(batch).__name__}, and forward takes {', '.join(names)}")
    return [batch]


def _described(inputs: Inputs) -> list[tuple[Any, ...]]:
    return [(t.dtype, *(t.shape[1:] if inputs.counts_examples(t) else t.shape)) for t in inputs.tensors]


def _said(inputs: Inputs) -> str:
    words = [f"{'x'.join(map(str, t.shape))} ({str(t.dtype).removeprefix('torch.')})" for t in inputs.tensors]
    return " and ".join(words) or "no tensor"
