"""What pruning sends between ranks, per step and per event, and what both take: at 1, 2 and 4 processes of gloo.

python tests/benchmarks/ranks.py [--ranks 1 2 4] [--net resnet18]

Counted are the calls of torch.distributed from Python: those of the pruning and of Lightning, not the gradients, which
DDP reduces in C++. A step's share is one all-reduce, whose traffic per rank hardly depends on how many ranks there are
(a ring sends twice the bytes); an event's are broadcasts. Processes share the cores here: times say how ranks wait for
each other, not how fast they would be apart.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning as L
import torch
import torch.distributed as dist
from fit.rank_launch import all_well, on_ranks
from subjects import Setting, write
from torch import Tensor
from whole_fit import Module

from lightning_taylor import Gradual, TaylorPruning


class Traffic:
    """Bytes that go into the collectives of torch.distributed."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = defaultdict(int)

    def counting(self, name: str) -> Any:
        call = getattr(dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            given = args[1] if name == "all_gather" else args[0]
            self.bytes[name] += given.numel() * given.element_size() if isinstance(given, Tensor) else 0
            return call(*args, **kwargs)

        return counted


class Steps(L.Callback):
    """Seconds and bytes of each step, those with an event and those without; the pruning comes before it."""

    def __init__(self, traffic: Traffic, pruner: TaylorPruning | None) -> None:
        self.traffic, self.pruner = traffic, pruner
        self.rows: list[tuple[bool, float, int]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.began, self.before = time.perf_counter(), sum(self.traffic.bytes.values())
        self.graph = self.pruner.graph if self.pruner else None

    def on_train_batch_end(self, *_: Any) -> None:
        event = self.pruner is not None and self.pruner.graph is not self.graph and self.graph is not None
        sent = sum(self.traffic.bytes.values()) - self.before
        self.rows.append((event, time.perf_counter() - self.began, sent))


def fit(rank: int, setting: Setting, target: float | None, folder: str) -> tuple[list[tuple[bool, float, int]], int]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    traffic = Traffic()
    pruner = TaylorPruning(target, Gradual(3, 3, 18), measure_latency=False) if target else None
    steps = Steps(traffic, pruner)
    # Objects are broadcast by a function that does not look its tensors' one up in torch.distributed.
    places = [(dist, "all_reduce"), (dist, "all_gather"), (dist.distributed_c10d, "broadcast")]
    patches = [mock.patch.object(place, name, traffic.counting(name)) for place, name in places]
    module, ranks = Module(setting), int(os.environ["WORLD_SIZE"])
    for patch in patches:
        patch.start()
    trainer = L.Trainer(
        max_steps=24, accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[*([pruner] if pruner else []), steps], use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module)
    channels = sum(pruner.graph.dense_sizes.values()) if pruner and pruner.graph else 0
    return steps.rows, channels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--net", default="resnet18:4:64")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = parser.parse_args()
    setting, rows = Setting.of(args.net), []
    for ranks in args.ranks:
        with tempfile.TemporaryDirectory() as folder:
            dense, _ = all_well(on_ranks(ranks, fit, setting, None, folder))[0]
            pruned, channels = all_well(on_ranks(ranks, fit, setting, 0.9, folder))[0]
        scored = [row for row in pruned[2:] if not row[0]][:12]
        events = [row for row in pruned if row[0]]
        plain = median(seconds for _, seconds, _ in dense[2:])
        per_step = median(sent for *_, sent in scored) - median(sent for *_, sent in dense[2:])
        rows.append({
            "ranks": ranks,
            "dense step": f"{plain * 1e3:.0f} ms",
            "with scores": f"{median(seconds for _, seconds, _ in scored) / plain:.2f} of it",
            "with an event": f"{median(seconds for _, seconds, _ in events) / plain:.2f} of it",
            "sent per step": f"{per_step:.0f} B for {channels} channels",
            "sent per event": f"{median(sent for *_, sent in events) - per_step:.0f} B more",
        })  # fmt: skip
        write(rows, f"Pruning on several ranks: {setting}, gloo, {len(events)} events", args.out, "ranks", "cpu")


if __name__ == "__main__":
    main()
