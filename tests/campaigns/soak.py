"""Thousands of events inside one fit: memory, time per event, hooks and living tensors must stay flat.

``python tests/campaigns/soak.py --events 2000``
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning as L
from fit.boring import Boring, loader, trainer
from torch import Tensor, nn

from campaigns.cases import HOOKS
from lightning_taylor import Criterion, Iterative, Target, TaylorPruning
from lightning_taylor.utilities.plain import to_plain

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """The process at some number of events."""

    events: int
    rss: int
    seconds: float
    hooks: int
    tensors: int
    elements: int
    objects: int
    record: int
    channels: int

    def __str__(self) -> str:
        return (
            f"{self.events:5d} events: {self.rss / 2**20:7.1f} MiB, {self.seconds * 1e3:6.2f} ms an event, "
            f"{self.hooks} hooks, {self.tensors} tensors of {self.elements} elements, {self.objects} objects, "
            f"record {self.record / 1024:.0f} KiB, {self.channels} channels left"
        )


class Watch(L.Callback):
    """Samples the process every so many events."""

    def __init__(self, pruner: TaylorPruning, every: int) -> None:
        self.pruner, self.every, self.samples = pruner, every, list[Sample]()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        state: Any = self.pruner._session._pruner
        events = len(state.record.events) if state else 0
        if events and events % self.every == 0 and (not self.samples or self.samples[-1].events != events):
            gc.collect()
            latest = sorted(event.seconds for event in state.record.events[-self.every :])
            tensors = [o for o in gc.get_objects() if isinstance(o, Tensor)]
            self.samples.append(
                Sample(
                    events=events,
                    rss=int(Path("/proc/self/statm").read_text().split()[1]) * PAGE,
                    seconds=latest[len(latest) // 2],
                    hooks=sum(len(getattr(m, kind)) for m in pl_module.modules() for kind in HOOKS),
                    tensors=len(tensors),
                    elements=sum(t.numel() for t in tensors),
                    objects=len(gc.get_objects()),
                    record=len(pickle.dumps(to_plain(state.record))),
                    channels=state.cost.channels,
                )
            )


def net(width: int) -> nn.Module:
    """Wide and small: three layers of ``width`` channels that can go."""
    return nn.Sequential(
        nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 1, groups=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4),
    )  # fmt: skip


def soak(events: int, every: int = 0, *, criterion: Criterion | None = None) -> list[Sample]:
    """One fit with so many events of one channel each, and its samples."""
    width = (events + 60) // 3
    pruner = TaylorPruning(Target(channels=6 / (3 * width)), Iterative(1, 1), criterion, measure_latency=False)
    watch = Watch(pruner, every or max(1, events // 10))
    module = Boring(net(width))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitter = trainer([pruner, watch], max_steps=events + 2, max_epochs=-1, default_root_dir=folder)
        fitter.fit(module, loader(64, 2, 4))
    return watch.samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2000)
    arguments = parser.parse_args()
    began = time.monotonic()
    samples = soak(arguments.events)
    for sample in samples:
        print(sample)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
