"""Transfer learning, then pruning: SqueezeNet 1.1 on a folder of flowers, criteria side by side.

For each seed the pretrained net is fine-tuned once (head first). From that checkpoint, with equal steps, data order
and learning rates, it goes on dense, and is pruned to each target by each criterion. One JSON line a run; a run that
is in the file already is not done again.

    python tests/benchmarks/flowers12.py --root FOLDER --weights FILE --out results.jsonl
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch

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
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    keys = ("seed", "criterion", "target", "normalization", "cost_penalty", "min_channels", "lr", "epochs")
    done = {tuple(row[k] for k in keys) for row in rows}
    jobs = [("dense", 1.0)] if args.dense else []
    jobs += [(criterion, target) for target in args.targets for criterion in args.criteria]
    for seed in args.seeds:
        data = ImageFolder(str(args.root), size=128, batch_size=32, num_workers=0, cache=True)
        start: tuple[ImageClassifier, float] | None = None
        for name, target in jobs:
            settings = (args.normalization, args.cost_penalty, args.min_channels, args.lr, args.epochs)
            key = (seed, name, target, *settings)
            if key in done:
                continue
            start = start or fine_tuned(args, seed, data)
            row = dict(zip(keys, key, strict=True)) | {"start": start[1]}
            rows.append(row | continued(args, seed, data, start[0], name, target))
            with args.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    table: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        table[row["criterion"], row["target"]].append(row["accuracy"])
    for (name, target), values in table.items():
        spread = stdev(values) if len(values) > 1 else float("nan")
        print(f"{name:16} {target:4} mean {mean(values):5.1f} sd {spread:4.1f} n={len(values)} {values}")


if __name__ == "__main__":
    main()
