"""What is in a checkpoint's file; reading it needs no Lightning, whose import takes seconds."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_taylor.cli.exit import fail

__all__ = ["read_checkpoint"]


def read_checkpoint(path: str, *, trust: bool) -> dict[str, Any]:
    """Read a checkpoint that a Trainer wrote, with its tensors on the CPU.

    Args:
        path: the file.
        trust: whether it may hold more than tensors and plain values, which can run any code.

    Raises:
        SystemExit: with 2, after a line on stderr, if there is no such file or it holds something else.
    """
    if not Path(path).is_file():
        fail(2, f"{path} is a folder: give the file in it" if Path(path).is_dir() else f"no file {path!r}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # a damaged file raises anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            fail(2, f"{path} holds more than tensors and plain values; if you trust who wrote it, add --trust")
        fail(2, f"{path} is no checkpoint: it cannot be read, or is damaged")
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        fail(2, f"{path} is no Lightning checkpoint: it has no state_dict, and Trainer.save_checkpoint writes one")
    return content
