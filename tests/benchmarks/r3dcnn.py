"""The headline at full size: R3DCNN from 37.8 to 3.0 GFLOPs a clip, 12.6 times fewer, in an ordinary fit.

The clips are made: a bar moves up, down, left or right through noise. They show that the fit runs, lands and gets
cheaper; they say nothing of gestures, and so few steps nothing of accuracy. Seconds are of the processor, all threads
together, so that others on the machine do not count.

    python tests/benchmarks/r3dcnn.py [--steps 8] [--events 1] [--batch-size 2] [--round-to 8]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from statistics import median

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from lightning_taylor import Gradual, OneShot, Taylor, TaylorPruning
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.recipes.clip_classifier import ClipClassifier
from lightning_taylor.recipes.data import ImageData
from lightning_taylor.recipes.r3dcnn import WIDTHS

FRAMES, CLASSES = 8, 4


class MovingBars(ImageData):
    """Videos of a bar that crosses the picture; the class is where it goes."""

    num_classes = CLASSES  # type: ignore[assignment]

    def __init__(self, videos: int, clips: int, size: int, batch_size: int) -> None:
        super().__init__(batch_size, num_workers=0)
        label = torch.arange(videos) % CLASSES
        self.data = TensorDataset(torch.stack([moving_bar(int(k), clips, size) for k in label]), label)

    def train_set(self, augment: bool) -> Dataset:
        return self.data

    val_set = test_set = lambda self: self.data


def moving_bar(direction: int, clips: int, size: int) -> Tensor:
    """One video of shape ``(T, 1, F, H, W)``."""
    frames = clips * FRAMES
    video_FHW = 0.3 * torch.randn(frames, size, size)
    for i in range(frames):
        at = size * (i if direction < 2 else frames - 1 - i) // frames
        video_FHW[i, at : at + size // 8] += 1.0
    if direction % 2:
        video_FHW = video_FHW.transpose(1, 2)
    return video_FHW.reshape(clips, FRAMES, 1, size, size).transpose(1, 2)


class Clock(L.Callback):
    """Seconds of every training batch, the surgery within it included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.began = time.process_time()

    def on_train_batch_end(self, *_: object) -> None:
        self.seconds.append(time.process_time() - self.began)


def forward_seconds(module: ClipClassifier, video: Tensor) -> float:
    """Median of three forward passes of one clip."""
    module.eval()
    seconds = []
    with torch.inference_mode():
        for _ in range(3):
            began = time.process_time()
            module(video)
            seconds.append(time.process_time() - began)
    module.train()
    return median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--events", type=int, default=1, help="1 removes everything at once, half-way")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--penalty", type=float, default=1e-3, help="per MFLOP of one clip, as the paper's")
    args = parser.parse_args()
    L.seed_everything(1, verbose=False)
    data = MovingBars(4 * CLASSES, args.clips, args.size, args.batch_size)
    module = ClipClassifier(
        num_classes=CLASSES, width=args.width, features=args.features, size=args.size, lr=args.lr, dropout=0.0
    )
    clip = data.data.tensors[0][:1, :1]
    dense_seconds = forward_seconds(module, clip)
    half = args.steps // 2
    every = max(1, half // args.events)
    pruner = TaylorPruning(
        1 / 12.6,
        OneShot(half) if args.events == 1 else Gradual(every, half - every * args.events, half),
        Taylor(positions="mean"),
        cost_penalty=args.penalty / args.clips,
        ignore=["fc6"],
        round_to=args.round_to,
        measure_latency=False,
    )
    clock = Clock()
    trainer = L.Trainer(
        max_steps=args.steps, callbacks=[clock, pruner], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        default_root_dir=tempfile.mkdtemp(),
    )  # fmt: skip
    began, began_cpu = time.perf_counter(), time.process_time()
    trainer.fit(module, data)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    report(module, pruner, args.clips)
    print(
        f"steps: first {clock.seconds[0]:.1f} s with the trace, dense {median(clock.seconds[1 : half - 1]):.2f} s, "
        f"with the event {clock.seconds[half - 1]:.1f} s, pruned {median(clock.seconds[half:]):.2f} s"
    )
    pruned_seconds = forward_seconds(module, clip)
    print(
        f"one clip forward: {1000 * dense_seconds:.0f} -> {1000 * pruned_seconds:.0f} ms, "
        f"{dense_seconds / pruned_seconds:.1f} times faster; the whole fit {cpu_seconds:.0f} s, "
        f"{seconds:.0f} s by the clock"
    )


def report(module: ClipClassifier, pruner: TaylorPruning, clips: int) -> None:
    assert pruner.graph is not None
    cost = CostModel(pruner.graph)
    dense, now = cost.dense.flops / clips / 1e9, cost.now.flops / clips / 1e9
    print(f"FLOPs a clip: {dense:.3g} -> {now:.3g} G, {dense / now:.2f} times fewer; reached: {pruner.reached}")
    widths = {name: pruner.graph.shapes[f"net.{name}.weight"][0] for name in WIDTHS}
    dense_maps = sum(pruner.graph.dense[f"net.{name}.weight"][0] for name in WIDTHS)
    print(f"maps: {dense_maps} -> {sum(widths.values())} ({sum(widths.values()) / dense_maps:.0%}), {widths}")


if __name__ == "__main__":
    main()
