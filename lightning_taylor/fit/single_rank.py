"""A training step on one of several ranks, run as if there were no others: they wait for its trace meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["single_rank"]

_ANSWERS = {"is_initialized": False, "get_world_size": 1, "get_rank": 0}

_NAMESPACES = ("c10d", "_c10d_functional")


@contextmanager
def single_rank() -> Iterator[None]:
    """Let ``torch.distributed`` answer as in a single process, and let no collective wait for ranks that do not come.

    A no-op where no process group is initialized.

    Raises:
        RuntimeError: from a collective that is called all the same.
    """
    if not dist.is_available() or not dist.is_initialized():
        yield
        return
    real = {name: getattr(dist, name) for name in _ANSWERS}
    try:
        for name, answer in _ANSWERS.items():
            setattr(dist, name, lambda *_args, answer=answer, **_kwargs: answer)
        # Whoever imported the questions by their names is answered by the real ones, and gets here.
        with _NothingSent():
            yield
    finally:
        for name, question in real.items():
            setattr(dist, name, question)


class _NothingSent(TorchDispatchMode):
    """Refuses every collective."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in _NAMESPACES:
            raise RuntimeError(f"{func} would wait for the other ranks, which do not run this copy")
        return func(*args, **(kwargs or {}))
