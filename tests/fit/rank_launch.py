"""Functions on several ranks, as ``torchrun`` would start them, with an end to every wait.

Forked from a server that has imported Lightning and done nothing else: to import it anew on every rank would take
longer than the tests themselves, and a process with autograd's own threads (``torch.export`` starts them) cannot fork.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle
import torch

WAIT = 240.0
WHERE = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def on_ranks(ranks: int, function: Callable[..., Any], *args: Any, wait: float = WAIT) -> list[Any]:
    """What ``function(rank, *args)`` returns on each rank, or the exception that it raised there.

    Raises:
        TimeoutError: naming the ranks that were still waiting; they are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "torch._dynamo", "lightning_taylor"])
    port = _free_port()
    # Tests hand over functions of their own, and their filters of warnings, which a fork would have had.
    work = cloudpickle.dumps((function, args, warnings.filters))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{rank}.pkl") for rank in range(ranks)]
        processes = [context.Process(target=_run, args=(files[rank], rank, ranks, port, work)) for rank in range(ranks)]
        for process in processes:
            process.start()
        try:
            waiting = _join(processes, wait)
            if waiting:
                raise TimeoutError(f"ranks {waiting} of {ranks} were still at work after {wait:g} s")
            return [pickle.loads(file.read_bytes()) for file in files]
        finally:
            for process in processes:
                process.kill()
                process.join()


def all_well(results: list[Any]) -> list[Any]:
    """The results, if no rank raised."""
    for rank, result in enumerate(results):
        if isinstance(result, BaseException):
            raise AssertionError(f"rank {rank} raised") from result
    return results


def alone(function: Callable[..., Any], *args: Any, wait: float = WAIT) -> Any:
    """What ``function(*args)`` returns in a process that has run nothing before, and that can fork children itself."""
    return all_well(on_ranks(1, _without_rank, function, args, wait=wait))[0]


def _without_rank(rank: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    for name in WHERE:
        del os.environ[name]
    return function(*args)


def _join(processes: list[BaseProcess], wait: float) -> list[int]:
    end = time.monotonic() + wait
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    return [rank for rank, process in enumerate(processes) if process.is_alive()]


def _run(file: Path, rank: int, ranks: int, port: int, work: bytes) -> None:
    values = (rank, 0, ranks, "127.0.0.1", port)
    os.environ.update({name: str(value) for name, value in zip(WHERE, values, strict=True)})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reports; errors go to stderr
    _leave_out_pictures()
    try:
        function, args, filters = pickle.loads(work)
        warnings.filters[:] = filters  # type: ignore[index]
        result: Any = function(rank, *args)
    except BaseException as error:
        traceback.print_exc()
        result = error
    temporary = file.with_suffix(".part")
    try:
        temporary.write_bytes(pickle.dumps(result))
    except Exception:
        temporary.write_bytes(pickle.dumps(RuntimeError(f"{type(result).__name__}: {result}")))
    temporary.rename(file)
    # Not through the interpreter's end: a process group that waits for a rank that died would hold it there.
    os._exit(0)


def _leave_out_pictures() -> None:
    """Do for this process what ``conftest.py`` does for that of the tests: to draw takes longer than to fit."""
    from lightning_taylor.report import html

    html.figures = lambda summary: {}


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
