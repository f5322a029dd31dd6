"""Accuracy at equal FLOPs: criteria, normalisations and Torch-Pruning side by side on one trained net.

For each seed the net is fine-tuned once. From there, with equal steps, data order and learning rates, it goes on dense,
and is pruned to each target by each method: events until half of the steps, fine-tuning for the rest. On the way it is
measured on a part of the test images (the curve), at the end on ``--test`` of them. One JSON line a run; what is in the
file already is not done again.

    python tests/benchmarks/accuracy.py resnet56 --data cifar10_jpeg.zip --weights resnet56.th --out folder/
    python tests/benchmarks/accuracy.py squeezenet --data flowers12/ --weights squeezenet1_1.pt --out folder/

The methods "TP ..." need Torch-Pruning: ``uv run --with torch-pruning python tests/benchmarks/accuracy.py ...``.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lines import by_method, fill, methods_and_targets
from nets import NETS, test_images
from remembered import Remembered
from rivals import TorchPruning
from subjects import write
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode

from lightning_taylor import (
    OBD,
    ActivationMean,
    Gradual,
    Random,
    Target,
    Taylor,
    TaylorBatch,
    TaylorPruning,
    WeightMagnitude,
)
from lightning_taylor.report.figures.style import COLOURS, GREY, MARKERS, canvas, legend_below, plain_axes, styled

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Taylor": (Taylor, {}),
    "Taylor, power 0": (Taylor, {"cost_power": 0.0}),
    "Taylor, power 0.5": (Taylor, {"cost_power": 0.5}),
    "Taylor, power 1": (Taylor, {"cost_power": 1.0}),
    "Taylor, power 2": (Taylor, {"cost_power": 2.0}),
    "Taylor l2": (Taylor, {"normalization": "l2"}),
    "Taylor l2+FLOPs": (Taylor, {"normalization": "l2", "cost_penalty": True}),
    "TaylorBatch": (TaylorBatch, {}),
    "TaylorBatch, power 0": (TaylorBatch, {"cost_power": 0.0}),
    "TaylorBatch, momentum 0.9": (lambda: TaylorBatch(0.9), {}),
    "Taylor, momentum 0.9": (lambda: Remembered(Taylor(), 0.9), {}),
    "Taylor, window": (lambda: Taylor(absolute="window"), {}),
    "TaylorBatch, power 1": (TaylorBatch, {"cost_power": 1.0}),
    "TaylorBatch, power 2": (TaylorBatch, {"cost_power": 2.0}),
    "TaylorBatch, power 4": (TaylorBatch, {"cost_power": 4.0}),
    "OBD l2": (OBD, {"normalization": "l2"}),
    "ActivationMean": (ActivationMean, {}),
    "WeightMagnitude": (WeightMagnitude, {}),
    "WeightMagnitude, power 0.5": (WeightMagnitude, {"cost_power": 0.5}),
    "Random": (Random, {}),
    "TP Taylor": ("taylor", {}),
    "TP Taylor, per layer": ("taylor", {"global_pruning": False}),
    "TP Taylor, isomorphic": ("taylor", {"isomorphic": True}),
    "TP magnitude": ("magnitude", {}),
    "TP magnitude, per layer": ("magnitude", {"global_pruning": False}),
    "TP magnitude, isomorphic": ("magnitude", {"isomorphic": True}),
}


class Classifier(L.LightningModule):
    """SGD with a cosine to zero, images flipped at random."""

    def __init__(self, net: nn.Module, steps: int, lr: float) -> None:
        super().__init__()
        self.net, self.steps, self.lr = net, steps, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, x.flip(3))
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("acc", (self.net(x).argmax(1) == y).float().mean(), batch_size=len(x))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Curve(L.Callback):
    """FLOPs and accuracy of every validation, the FLOPs of each method by the same counter."""

    def __init__(self, example: Tensor) -> None:
        self.example, self.points = example, []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        accuracy = round(100 * float(trainer.callback_metrics["acc"]), 2)
        self.points.append([trainer.global_step, flops(pl_module.net, self.example), accuracy])


def flops(net: nn.Module, example: Tensor) -> int:
    # With gradients: without, torch's fused encoder layers are taken, whose FLOPs its own counter does not see.
    with FlopCounterMode(display=False) as counter:
        net(example.to(next(net.parameters()).device))
    return counter.get_total_flops()


def fitted(args: argparse.Namespace, seed: int, method: str, target: float, keep: Path | None = None) -> dict[str, Any]:
    """Fit one net by one method, and say what is left of it; the net itself goes into the file ``keep``."""
    net, data, example = NETS[args.net](argparse.Namespace(**vars(args)), seed)
    dense = flops(net, example)
    L.seed_everything(1000 + seed, verbose=False)
    epochs = -(-args.steps * args.batch // len(data))  # type: ignore[arg-type]
    order = torch.cat([torch.randperm(len(data)) for _ in range(epochs)])  # type: ignore[arg-type]
    train = DataLoader(Subset(data, order[: args.steps * args.batch].tolist()), args.batch)
    curve = Curve(example)
    callbacks: list[L.Callback] = [curve]
    if method != "dense":
        schedule = Gradual(every_n_steps=args.every, start_step=5, end_step=args.steps // 2)
        criterion, options = METHODS[method]
        if isinstance(criterion, str):
            callbacks.insert(0, TorchPruning(criterion, target, schedule, example, dense, flops, **options))
        else:
            penalty = args.cost_penalty if options.get("cost_penalty") else 0.0
            options = (
                {"min_channels": args.min_channels, "measure_latency": False} | options | {"cost_penalty": penalty}
            )
            options["round_to"] = args.round_to
            if args.measured_batch:
                options["example_inputs"] = [args.measured_batch, *example.shape[1:]]
            asked = Target(**{args.resource: target})
            callbacks.insert(0, TaylorPruning(asked, schedule, criterion(), **options))
    trainer = L.Trainer(
        max_epochs=1, callbacks=callbacks, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, precision=args.precision,
        val_check_interval=args.steps // args.points, default_root_dir=args.folder,
    )  # fmt: skip
    module = Classifier(net, args.steps, args.lr)
    began = time.perf_counter()
    trainer.fit(module, train, DataLoader(test_images(args, args.part), 250))
    seconds = time.perf_counter() - began
    trainer.validate(module, DataLoader(test_images(args, args.test), 250), verbose=False)
    if keep:
        torch.save(net, keep)
    return {
        "accuracy": round(100 * float(trainer.callback_metrics["acc"]), 2),
        "flops": round(flops(net, example) / dense, 4),
        "remaining": {
            k: round(v, 4) for c in callbacks if isinstance(c, TaylorPruning) for k, v in c.remaining.items()
        },
        "seconds": round(seconds, 1),
        "curve": [[step, round(count / dense, 4), accuracy] for step, count, accuracy in curve.points],
    }


@styled
def picture(rows: list[dict[str, Any]], net: str) -> Any:
    """Accuracy over the fit, for the smallest target: means of the seeds, and their range; FLOPs fall alike for all."""
    least, dense = min(row["target"] for row in rows), [row["accuracy"] for row in rows if row["method"] == "dense"]
    runs: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        if row["target"] == least and row["method"] != "dense":
            runs[row["method"]].append([*row["curve"][:-2], [row["curve"][-1][0], row["flops"], row["accuracy"]]])
    figure, (axes,) = canvas(f"{net}, pruned to {least:.0%} of its FLOPs", 4.2)
    for place, (method, curves) in enumerate(sorted(runs.items(), key=lambda run: -mean(c[-1][2] for c in run[1]))):
        points = list(zip(*curves, strict=True))
        x = [seeds[0][0] for seeds in points]
        y, low, high = ([pick(p[2] for p in seeds) for seeds in points] for pick in (mean, min, max))
        colour, style = COLOURS[place % len(COLOURS)], ("-", ":", "-.")[place // len(COLOURS)]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        look = {"color": colour, "marker": MARKERS[place % len(MARKERS)]}
        axes.plot(x, y, linestyle=style, label=f"{method} {y[-1]:.1f} %", **look)
    axes.axhline(mean(dense), color=GREY, linestyle="--", label=f"dense, equal steps {mean(dense):.1f} %")
    axes.set(xlabel=f"optimizer steps (events until {points[-1][0][0] // 2})", ylabel="test accuracy (%)")
    plain_axes(axes, grid="both")
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    own = "" if args.resource == "flops" else f"{args.resource}_"
    settings = f"{own}{args.steps}x{args.batch}_lr{args.lr}_every{args.every}_least{args.min_channels}"
    settings += "" if args.precision == "32-true" else f"_{args.precision}"
    settings += f"_multiples{args.round_to}" if args.round_to else ""
    file = args.folder / f"{args.net}_{settings}.jsonl"
    jobs = methods_and_targets(args.seeds, args.methods, args.targets)
    rows = fill(file, jobs, partial(fitted, args))
    if "dense" in args.methods:
        picture(rows, args.net).savefig(file.with_suffix(".png"), dpi=120)
    write(by_method(rows, "accuracy"), f"{args.net}: test accuracy in %", args.folder, file.stem, "cpu")


def parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    """Return what reads the settings of a fit."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", dest="folder", type=Path, default=Path("accuracy"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["dense", *METHODS], choices=["dense", *METHODS])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument(
        "--resource", default="flops", help="that the targets are fractions of: flops, params, memory ..."
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning before it, for the SqueezeNet")
    parser.add_argument("--cost-penalty", type=float, default=0.1, help="of Taylor l2+FLOPs, per MFLOP of a channel")
    parser.add_argument("--min-channels", type=int, default=1)
    parser.add_argument("--round-to", type=int, help="multiple of the widths; by default what TaylorPruning takes")
    parser.add_argument("--points", type=int, default=10, help="of the curve")
    parser.add_argument("--part", type=int, default=1000, help="test images of a point")
    parser.add_argument("--test", type=int, default=10000, help="test images of the end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="32-true", help="of the fit and its validations, as Lightning names it")
    parser.add_argument("--measured-batch", type=int, help="for latency and memory; the fit's if missing")
    return parser


if __name__ == "__main__":
    main()
