"""Work in forked children of a warm process: importing torch and Lightning anew takes ten seconds each time."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Child:
    """A running child; ``join`` gives what its work returned."""

    pid: int
    pipe: int
    began: float
    result: Any = None
    status: int | None = None

    def strike(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
            else:
                os.kill(self.pid, number)

    def join(self, timeout: float) -> str:
        """Wait for the end: "returned", "died" (by a signal or ``os._exit``) or "stuck" (and killed)."""
        data, deadline = b"", time.monotonic() + timeout
        while True:
            ready, _, _ = select.select([self.pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                os.close(self.pipe)
                return "stuck"
            chunk = os.read(self.pipe, 1 << 16)
            if not chunk:
                break
            data += chunk
        os.close(self.pipe)
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
        try:
            self.result = pickle.loads(data)
        except (EOFError, pickle.UnpicklingError):
            return "died"
        return "returned"


def outcome(work: Callable[[], Any], timeout: float, log: Path) -> tuple[Any, str, str]:
    """What ``work`` returns in a child; or None, "timeout" or "error", and why."""
    child = start(work, log)
    ended = child.join(timeout)
    if ended == "stuck":
        return None, "timeout", f"longer than {timeout:g} s"
    if ended == "returned" and "traceback" not in child.result:
        return child.result, "", ""
    said = child.result["traceback"] if ended == "returned" else log.read_text(errors="replace")[-400:]
    return None, "error", f"{ended}: {said}"


def start(work: Callable[[], Any], log: Path) -> Child:
    """Fork a child that runs ``work`` with its output in a file, and sends back what it returns.

    An exception comes back as its traceback under the key "traceback".
    """
    sys.stdout.flush()
    sys.stderr.flush()
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sending)
        return Child(pid, receiving, time.monotonic())
    # The child never returns into the parent's stack.
    try:
        os.close(receiving)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        warnings.simplefilter("ignore")
        try:
            result = work()
        except BaseException:
            result = {"traceback": traceback.format_exc()}
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with os.fdopen(sending, "wb") as pipe:
            pickle.dump(result, pipe)
    finally:
        os._exit(0)
    raise AssertionError("unreachable")
