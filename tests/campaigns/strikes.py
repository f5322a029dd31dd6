"""Ways and moments to end a fit: a signal or an exception, at a call or a line that is counted."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import lightning as L

import lightning_taylor
from lightning_taylor import TaylorPruning
from lightning_taylor.surgery.transaction import Transaction

PACKAGE = str(Path(lightning_taylor.__file__).parent) + os.sep


class StruckError(BaseException):
    """Not an ``Exception``: the trace takes those for errors of the user's forward pass."""


class UsersError(Exception):
    """What the user's own code raises."""


@dataclass
class Strike:
    """One way to end a fit.

    Attributes:
        how: "SIGKILL", "SIGTERM", "SIGINT", "exception" or "full disk".
        where: "clock", "hook" of the Trainer, "module" (a hook of the user's module, or ``on_event``), "surgery",
            "line" of our package, "save" of a checkpoint or "report".
        name: which hook, which change of a transaction, which part of the package.
        count: at which of the calls or lines.
        seconds: for the clock.
    """

    how: str
    where: str
    name: str = ""
    count: int = 0
    seconds: float = 0.0

    HOOKS: ClassVar[tuple[str, ...]] = (
        "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
        "on_before_optimizer_step", "on_train_batch_end",
    )  # fmt: skip
    OF_MODULE: ClassVar[tuple[str, ...]] = (*HOOKS, "on_save_checkpoint", "on_event")
    CHANGES: ClassVar[tuple[str, ...]] = ("set_storage", "set_items", "set_attribute", "follow_shapes")

    def now(self) -> None:
        """End it here."""
        if self.how == "exception":
            raise (UsersError if self.where == "module" else StruckError)(str(self))
        if self.how == "full disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        # To the process, not raise_signal: as from outside; Python runs the handler at its next instruction.
        os.kill(os.getpid(), getattr(signal, self.how))

    @contextmanager
    def armed(self, module: L.LightningModule, pruner: TaylorPruning) -> Iterator[list[L.Callback]]:
        """Lie in wait; yields the callbacks that the Trainer needs for it."""
        if self.where == "hook":
            yield [_Hook(self)]
        elif self.where == "module":
            owner = pruner if self.name == "on_event" else module
            setattr(owner, self.name, self._counting(getattr(owner, self.name) or print))
            yield []
        elif self.where == "report":
            with mock.patch.object(os, "fdopen", self._counting(os.fdopen)):
                yield []
        elif self.where == "surgery":
            with mock.patch.object(Transaction, self.name, self._counting(getattr(Transaction, self.name))):
                yield []
        elif self.where == "save":
            with _saving(self):
                yield []
        elif self.where == "line":
            with on_lines(self.name, self.count, self.now):
                yield []
        else:
            yield []

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which strikes before or after one of its calls."""
        left = self.count

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and self.count % 2:
                self.now()
            result = original(*args, **kwargs)
            if left == 0 and not self.count % 2:
                self.now()
            return result

        return counted


class _Hook(L.Callback):
    """Strikes in one hook of the Trainer."""

    def __init__(self, strike: Strike) -> None:
        left = strike.count

        def hook(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                strike.now()

        setattr(self, strike.name, hook)


@contextmanager
def _saving(strike: Strike) -> Iterator[None]:
    """Write one half of a checkpoint and strike."""
    from fsspec.implementations.local import LocalFileOpener

    left = strike.count

    def write(self: Any, data: Any) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            self.f.write(bytes(data)[: len(data) // 2])
            self.f.flush()
            strike.now()
        return self.f.write(data)

    with mock.patch.object(LocalFileOpener, "write", write):
        yield


@contextmanager
def on_lines(part: str, count: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something at the ``count``-th line that runs in one part of the package."""
    left = count

    def local(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                act()
        return local

    def entered(frame: Any, event: str, _: Any) -> Any:
        return local if left > 0 and part in parts_of(frame.f_code.co_filename) else None

    sys.settrace(entered)
    try:
        yield
    finally:
        sys.settrace(None)


@contextmanager
def counting_lines(lines: Counter[str]) -> Iterator[None]:
    """Count the lines that run in each part of the package."""
    by_file: dict[str, list[int]] = {}

    def entered(frame: Any, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE):
            return None
        count = by_file.setdefault(file, [0])

        def local(frame: Any, event: str, _: Any) -> Any:
            if event == "line":
                count[0] += 1
            return local

        return local

    sys.settrace(entered)
    try:
        yield
    finally:
        sys.settrace(None)
        for file, (count,) in by_file.items():
            lines.update(dict.fromkeys(parts_of(file), count))


def parts_of(file: str) -> tuple[str, ...]:
    """Return ``("fit", "fit/session")`` for a module of that folder, nothing for a file outside of the package."""
    if not file.startswith(PACKAGE):
        return ()
    path = Path(file[len(PACKAGE) :]).with_suffix("").parts
    return tuple("/".join(path[: n + 1]) for n in range(len(path)))
