"""What a checkpoint's ``forward`` takes: as given on the command line, from the fit's data, or from the module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.cli.failure import debugging, fail
from lightning_taylor.cli.fit_config import FitConfig
from lightning_taylor.graph.serialize import call_from_plain
from lightning_taylor.utilities.calls import Inputs

__all__ = ["find_inputs", "random_inputs"]

MOST_EXAMPLES = 8


def random_inputs(shapes: Sequence[Sequence[int]]) -> Inputs:
    """Normally distributed numbers, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return Inputs(tuple(torch.randn(*shape, generator=generator) for shape in shapes))


def find_inputs(
    module: Any,
    shapes: Sequence[Sequence[int]] | None,
    config: FitConfig | None,
    path: str,
    called_with: Sequence[Mapping[str, Any]] = (),
    part: str = "",
) -> tuple[Inputs, str]:
    """Inputs, and in words where they come from.

    Args:
        module: a LightningModule.
        shapes: of random inputs, if asked for.
        config: the configuration of a fit, if there is one.
        path: the checkpoint, beside whose folder a configuration may lie.
        called_with: what the fit of the checkpoint called and with which shapes, as ``call_to_plain`` has it.
        part: the part of the module that is asked for; "" for all of it.
    """
    if shapes:
        return random_inputs(shapes), "random numbers"
    if config is not None and config.has_data:
        return _first_batch(module, config)
    example = getattr(module, "example_input_array", None)
    if example is None and called_with:
        # A training step that calls `self.net(x)` mostly has a `forward` that does the same.
        by_module = {call["module"]: call for call in reversed(called_with)}
        call = call_from_plain(by_module.get(part, called_with[0]), torch.Generator().manual_seed(0))
        return Inputs(call.args, call.kwargs), "random numbers of the shapes that the fit had"
    if example is None:
        beside = Path(path).parent.parent / "config.yaml"
        or_config = f", or --model {beside}" if beside.is_file() else ""
        fail(2, f"what does {type(module).__name__}.forward take? Give --input-shape, as in 1 3 224 224{or_config}")
    return Inputs.of(example), "the module's example_input_array"


def _first_batch(module: nn.Module, config: FitConfig) -> tuple[Inputs, str]:
    """A few examples of what the data module of a configuration gives to validation."""
    data = config.data_module()
    name = type(data).__name__
    try:
        data.prepare_data()
        data.setup("validate")
        batch = next(iter(data.val_dataloader()))
    except Exception as error:
        if debugging():
            raise
        fail(2, f"{name} gave no batch ({type(error).__name__}: {' '.join(str(error).split())}): give --input-shape")
    known = inspect.signature(module.forward).parameters
    if isinstance(batch, Mapping):
        batch = {key: value for key, value in batch.items() if key in known}
    elif isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor) and not (isinstance(batch, dict) and batch):
        fail(2, f"{name}'s batches do not tell what forward takes: give --input-shape")
    inputs = Inputs.of(batch)
    return inputs.with_batch(min(inputs.batch, MOST_EXAMPLES)), f"examples of {name}'s validation set"
