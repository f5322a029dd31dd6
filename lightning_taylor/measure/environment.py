"""Where a pruning was measured, and what its network weighs: machine, versions, file size, peak memory."""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_taylor.measure.memory import peak_bytes

__all__ = [
    "machine",
    "peak_memory",
    "state_dict_bytes",
]

_PACKAGES = ("lightning-taylor", "lightning", "pytorch-lightning", "torch", "torchvision")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers of a report depend on and the network does not.

    Args:
        device: that the network was measured on.

    Returns:
        "machine" and "device" in words, and "versions": package -> version, Python included.

    Example:
        >>> sorted(machine(torch.device("cpu")))
        ['device', 'machine', 'versions']
    """
    return {
        "machine": f"{_processor()}, {os.cpu_count()} logical cores, {platform.system()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def state_dict_bytes(net: nn.Module) -> int:
    """The size of the file that ``torch.save(net.state_dict(), path)`` would write; nothing is kept or written.

    Example:
        >>> 40_000 < state_dict_bytes(nn.Linear(100, 100)) < 44_000
        True
    """
    counter: Any = _Counter()
    torch.save(net.state_dict(), counter)
    return counter.count


def peak_memory(run: Callable[[], Any], held: Sequence[torch.Tensor]) -> int:
    """Return the most bytes that are alive at one time in a run of a network.

    Counted as ``measure.memory.peak_bytes`` does; random state is given back.

    Args:
        run: runs it, in evaluation mode, on its inputs.
        held: its parameters, buffers and inputs, which count, too.
    """
    with torch.random.fork_rng(devices={t.device for t in held if t.device.type == "cuda"}):
        return peak_bytes(run, held)


class _Counter(io.RawIOBase):
    """A file that only counts."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        self.count += size
        return size


def _versions() -> Mapping[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name; Python itself knows it on few systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
