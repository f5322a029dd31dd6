"""The examples by which a network becomes one of whole numbers: from a file, or of the configuration's data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_taylor.cli.checkpoint_model import giving_batches, validation_loader
from lightning_taylor.cli.exit import debugging, fail
from lightning_taylor.utilities.calls import Inputs, cast

if TYPE_CHECKING:
    from lightning_taylor.cli.config import FitConfig

__all__ = ["Calibration", "find_calibration", "spread"]

EXAMPLES = 512
AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches, as ``export_onnx`` takes them, and in words what they are compared on."""

    batches: Sequence[Any]
    source: str

    @property
    def said(self) -> str:
        """Where they come from, and what set the ranges."""
        others = "others of them" if len(self.batches) > 1 else "the same"
        return f"{self.source}, with ranges of {others}"


def find_calibration(file: str | None, config: FitConfig | None) -> Calibration:
    """Read the examples of a file, or take them from the validation set of a configuration.

    Raises:
        SystemExit: with 2, after a line on stderr, if there are none.
    """
    if file is not None:
        pieces = _read(file).split(AT_ONCE)
        return Calibration([dict(piece.kwargs) or piece.args for piece in pieces], f"examples of {file}")
    if config is None or not config.has_data:
        fail(2, "--precision int8 needs examples, and the configuration names no data: give --calibration FILE")
    loader, name = validation_loader(config, "--calibration FILE")
    with giving_batches(name, "--calibration FILE"):
        batches = list(spread(loader))
    return Calibration(batches, f"examples of {name}'s validation set")


def _read(file: str) -> Inputs:
    """The tensors of a file; floats in single precision."""
    try:
        given = np.load(file) if file.endswith(".npy") else torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file raises anything
        if debugging():
            raise
        fail(2, f"--calibration {file} cannot be read: give tensors by torch.save, or an array in an .npy")
    given = torch.from_numpy(given) if isinstance(given, np.ndarray) else given
    parts = given.values() if isinstance(given, dict) else given if isinstance(given, list | tuple) else [given]
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        fail(2, f"--calibration {file} holds a {type(given).__name__}, and not a tensor, or a tuple or dict of tensors")
    if 0 in [len(part) if part.ndim else 0 for part in parts]:
        fail(2, f"--calibration {file} holds no example: a tensor's first dimension counts them")
    return Inputs.of(cast(tuple(given) if isinstance(given, list) else given, torch.float32))


def spread(loader: Iterable[Any]) -> Iterable[Any]:
    """Examples over all of a data set, which may be sorted by class; the first batches of what has no length."""
    data = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or not isinstance(data, Sized) or isinstance(data, IterableDataset):
        return islice(loader, EXAMPLES // AT_ONCE)
    rows = torch.linspace(0, len(data) - 1, min(EXAMPLES, len(data))).round().long().tolist()
    return DataLoader(Subset(data, rows), AT_ONCE, collate_fn=loader.collate_fn)  # type: ignore[arg-type]
