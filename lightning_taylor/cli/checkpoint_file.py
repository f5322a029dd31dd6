"""What is in a checkpoint's file; reading it needs no Lightning, whose import takes seconds."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_taylor.checkpoint.widths import STATE_KEY
from lightning_taylor.cli.exit import fail
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.record import Record
from lightning_taylor.report.state import PruningState, read_state

__all__ = ["pruning_in", "read_checkpoint", "state_in"]


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


def state_in(content: Mapping[str, Any], path: str) -> PruningState | None:
    """Read what a checkpoint says about its pruning; None if it was saved without ``TaylorPruning``.

    Raises:
        SystemExit: with 2, after a line on stderr, if it is damaged or of a release that this one does not know.
    """
    plain = content.get("callbacks", {}).get(STATE_KEY)
    try:
        return None if plain is None else read_state(plain)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        fail(2, f"what {path} says about its pruning cannot be read ({type(error).__name__}: {error})")


def pruning_in(content: Mapping[str, Any], path: str) -> tuple[PruningState, ChannelGraph, Record]:
    """Read what a checkpoint says about its pruning, which must have begun: the state, and of that graph and record.

    Raises:
        SystemExit: as ``state_in``; also if nothing is said, or the channels were not known yet.
    """
    state = state_in(content, path)
    if state is None:
        fail(2, f"{path} holds no state of TaylorPruning: it was saved without the callback, or its weights alone")
    if state.pruned is None:
        fail(2, f"{path} was saved before the first training batch, when TaylorPruning knew no channels yet")
    return (state, *state.pruned)
