"""What happens whole or not at all: files that are written, and work that no signal may split."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "signals_deferred",
    "write_file",
]


def write_file(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write a file so that no reader ever sees half of it, and a failure leaves the old one as it was.

    Args:
        path: its folder is made if missing; an existing file is replaced.
        data: the content; text is written as UTF-8, its newlines as they are.

    Returns:
        The path.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(Path(folder) / "new" / "note.txt", "all of it").read_text()
        'all of it'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a file can only be replaced atomically within one file system.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_DEFERRED = ("SIGUSR1", "SIGTERM", "SIGINT")


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold back SIGUSR1, SIGTERM and SIGINT until the body is left, whether by its end or by an error.

    Lightning saves checkpoints inside a signal handler; one in the middle of a surgery would save half of it. What
    came meanwhile is raised again on the way out, so Ctrl-C ends in ``KeyboardInterrupt`` there. Contexts nest:
    wrap one around a surgery and what has to be noted about it, and nothing comes between the two.

    The handlers are exchanged rather than the signals masked: a mask holds for one thread, the kernel hands the
    signal to another (a data loader's, an OpenMP worker), and Python runs the handler in the main thread all the
    same. Handlers run, and can be exchanged, in the main thread only; in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (getattr(signal, name) for name in _DEFERRED if hasattr(signal, name))
    # None: a handler that was not installed from Python and could not be put back.
    handlers = {n: h for n in numbers if (h := signal.getsignal(n)) is not None}
    came: dict[int, None] = {}
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: came.setdefault(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)
