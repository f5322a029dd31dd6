"""What an oracle has measured so far, in a file: for a study that is interrupted.

Shape legend: S = channels of a group that are measured.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Column", "StateFile", "fingerprint"]


@dataclass
class Column:
    """One batch: its loss, and the change without each channel."""

    loss: float
    examples: int
    changes: dict[str, Tensor] = field(default_factory=dict)


class StateFile:
    """The columns that are finished, and whose they are."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint

    def load(self) -> list[Column]:
        """The finished columns, none if there is no file.

        Raises:
            ValueError: if they are somebody else's.
        """
        if not self._path.exists():
            return []
        kept = torch.load(self._path, weights_only=True)
        if kept["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"{self._path} was measured on other weights or other channels; delete it, or give another file"
            )
        return [Column(**column) for column in kept["columns"]]

    def save(self, columns: list[Column]) -> None:
        """Write all finished columns, whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        torch.save({"fingerprint": self._fingerprint, "columns": [vars(c) for c in columns]}, unfinished)
        unfinished.replace(self._path)


def fingerprint(model: nn.Module, channels: Mapping[str, Tensor]) -> str:
    """Of all weights and buffers, and of the channels that are measured."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**model.state_dict(), **{f"channels of {n}": t for n, t in channels.items()}}.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
