"""Transfer learning, then pruning: SqueezeNet 1.1 on a folder of flowers, criteria side by side.

For each seed the pretrained net is fine-tuned once (head first). From that checkpoint, with equal steps, data order
and learning rates, it goes on dense, and is pruned to each target by each criterion. One JSON line a run; a run that
is in the file already is not done again.

    python tests/benchmarks/flowers12.py --root FOLDER --weights FILE --out results.jsonl
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lines import by_method, fill, methods_and_targets
from subjects import write

from lightning_taylor import Gradual, Random, Taylor, TaylorBatch, TaylorPruning, WeightMagnitude
from lightning_taylor.recipes.classifier import ImageClassifier
from lightning_taylor.recipes.folder import ImageFolder

CRITERIA = {"Taylor": Taylor, "TaylorBatch": TaylorBatch, "WeightMagnitude": WeightMagnitude, "Random": Random}


def trainer(epochs: int, callbacks: list[L.Callback], folder: Path) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="auto", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=folder, check_val_every_n_epoch=epochs,
    )  # fmt: skip


def accuracy(run: L.Trainer) -> float:
    return round(100 * float(run.callback_metrics["val_acc"]), 2)


def fine_tuned(args: argparse.Namespace, seed: int, data: ImageFolder) -> tuple[ImageClassifier, float]:
    kept = args.out.parent / f"start_{seed}_{args.dense_epochs}.pt"
    if kept.exists():
        module = ImageClassifier("squeezenet1_1", None, num_classes=12)
        state = torch.load(kept)
        module.net.load_state_dict(state["net"])
        return module, state["accuracy"]
    L.seed_everything(seed, verbose=False)
    module = ImageClassifier("squeezenet1_1", str(args.weights), optimizer="sgd", lr=1e-3, schedule="constant")
    run = trainer(args.dense_epochs, [], args.folder)
    run.fit(module, data)
    torch.save({"net": module.net.state_dict(), "accuracy": accuracy(run)}, kept)
    return module, accuracy(run)


def continued(
    args: argparse.Namespace, seed: int, data: ImageFolder, start: ImageClassifier, name: str, target: float
) -> dict[str, Any]:
    L.seed_everything(1000 + seed, verbose=False)
    module = ImageClassifier(
        "squeezenet1_1", None, num_classes=12, optimizer="sgd", lr=args.lr, schedule="cosine", warmup_steps=0
    )
    module.net.load_state_dict(copy.deepcopy(start.net.state_dict()))
    module.head_is_new = False
    steps = 720 // 32 * args.epochs
    pruner = TaylorPruning(
        target,
        Gradual(every_n_steps=args.every, start_step=4, end_step=steps // 2),
        None if name == "dense" else CRITERIA[name](),
        normalization=args.normalization,
        cost_penalty=args.cost_penalty,
        min_channels=args.min_channels,
        measure_latency=False,
    )
    run = trainer(args.epochs, [] if name == "dense" else [pruner], args.folder)
    began = time.perf_counter()
    run.fit(module, data)
    achieved = 1.0 if name == "dense" else pruner.remaining["flops"]
    return {"accuracy": accuracy(run), "flops": round(achieved, 4), "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("flowers12.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--criteria", nargs="+", default=["Taylor", "WeightMagnitude", "Random"], choices=CRITERIA)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--normalization", default="l2")
    parser.add_argument("--cost-penalty", type=float, default=0.0)
    parser.add_argument("--min-channels", type=int, default=1)
    parser.add_argument("--dense-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    args.folder = args.out.parent / "runs"
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = {name: getattr(args, name) for name in ("normalization", "cost_penalty", "min_channels", "lr", "epochs")}
    data = ImageFolder(str(args.root), size=128, batch_size=32, num_workers=0, cache=True)
    start = cache(lambda seed: fine_tuned(args, seed, data))

    def run(seed: int, method: str, target: float, **_: Any) -> dict[str, Any]:
        model, before = start(seed)
        return {"start": before} | continued(args, seed, data, model, method, target)

    jobs = methods_and_targets(args.seeds, ["dense"] * args.dense + args.criteria, args.targets)
    rows = fill(args.out, [job | settings for job in jobs], run)
    write(by_method(rows, "accuracy"), "SqueezeNet: test accuracy in %", args.out.parent, args.out.stem, "cpu")


if __name__ == "__main__":
    main()
