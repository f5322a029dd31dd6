"""The wall time of a fit that prunes, over the same fit that does not; with Torch-Pruning in a callback beside it.

    python tests/benchmarks/whole_fit.py [--device cuda] [--nets resnet50:16:64 ...] [--steps 200] [--targets 0.5 0.3]
    uv run --with torch-pruning python tests/benchmarks/whole_fit.py     with the peer

Everything a user waits for counts: the trace, the scores, the events, the report; not the import of the packages. The
data is one made batch on the device, with new labels in every step, so nothing hides behind a loader and nothing is
learnt by heart. Events until half of the steps, ten of them. The peer removes in rounds of a hundredth of the channels,
as many as an event needs, and counts the FLOPs after each. With --busy it is the processor's time in one thread, which
does not grow with what else runs on the machine.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import lightning as L
import torch
import torch.nn.functional as F
from accuracy import flops
from rivals import TorchPruning
from subjects import Clock, Setting, Training, clock_of, parser, write
from torch import Tensor

from lightning_taylor import Gradual, TaylorPruning


class Module(L.LightningModule):
    """Trains on one batch, which stays on the device, with labels of chance."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, self.net = setting, setting.model()
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_fit_start(self) -> None:
        made = Training(self.setting, self.net)
        self.batches.append((made.x, made.y))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), torch.randint_like(y, 10))

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches * 10**6, batch_size=None)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Peaks(L.Callback):
    """The most memory that a step takes, at the start and at the end of the fit, on a GPU."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            self.bytes.append(torch.cuda.max_memory_allocated())


class Fit:
    """A fit, its time, the peaks of its steps and the net that is left, and its FLOPs."""

    def __init__(self, setting: Setting, steps: int, callbacks: list[L.Callback], folder: str, clock: Clock) -> None:
        peaks = Peaks()
        trainer = L.Trainer(
            max_steps=steps, accelerator="gpu" if setting.device == "cuda" else "cpu", devices=1, logger=False,
            precision="bf16-mixed" if setting.half else "32-true", enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            callbacks=[*callbacks, peaks],
        )  # fmt: skip
        module = Module(setting)
        began = clock()
        trainer.fit(module)
        if setting.device == "cuda":
            torch.cuda.synchronize()
        self.seconds, self.peaks = clock() - began, peaks.bytes
        self.net = module.net
        self.flops = flops(self.net.eval(), setting.images(1, 64, 4))


def measured(setting: Setting, steps: int, targets: list[float], folder: str, clock: Clock) -> dict[str, Any]:
    events = Gradual(every_n_steps=max(1, steps // 20), start_step=3, end_step=steps // 2)
    example = setting.images(1, 64, 4).to(setting.device)
    peer = find_spec("torch_pruning") and import_module("torch_pruning")
    Fit(setting, 5, [], folder, clock)
    dense = Fit(setting, steps, [], folder, clock)
    row: dict[str, Any] = {"net": str(setting), "steps": steps, "dense": f"{dense.seconds:.1f} s"}
    for target in targets:
        fits = {"": Fit(setting, steps, [TaylorPruning(target, events, measure_latency=False)], folder, clock)}
        if peer:
            theirs = TorchPruning("taylor", target, events, example, dense.flops, flops, rounds=100)
            fits["Torch-Pruning "] = Fit(setting, steps, [theirs], folder, clock)
        for name, fit in fits.items():
            left = f"{fit.seconds / dense.seconds:.2f} ({fit.flops / dense.flops:.1%} left)"
            row[f"{name}to {target:.0%}"] = left
            if fit.peaks:
                row[f"{name}peak memory at {target:.0%}"] = f"{fit.peaks[-2] / dense.peaks[-2]:.2f}"
    return row


def main() -> None:
    asked = parser(__doc__, "whole_fit", default=["resnet50:16:64", "vgg16:4:64"])
    asked.add_argument("--half", action="store_true")
    asked.add_argument("--last", action="store_true")
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.3])
    asked.add_argument("--busy", action="store_true", help="processor time in one thread")
    args = asked.parse_args()
    clock = clock_of(args.busy)
    warnings.filterwarnings("ignore")
    rows = []
    for text in args.nets:
        setting = Setting.of(text, args.device, args.half, args.last)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(setting, args.steps, args.targets, folder, clock))
        kind = "Processor" if args.busy else "Wall"
        title = f"{kind} time of a fit of {args.steps} steps that prunes, over the dense one"
        write(rows, title, args.out, args.name, args.device)


if __name__ == "__main__":
    main()
