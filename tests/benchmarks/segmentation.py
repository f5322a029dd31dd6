"""Segmentation, pruned: mean intersection over union of LR-ASPP with a MobileNetV3, on images that are made here.

    python tests/benchmarks/segmentation.py [--targets 0.5 0.3] [--seeds 0 1 2] --out folder/

Discs, squares and triangles of any colour, over one another, on a background of noise; each pixel is one of four
classes. The net is torchvision's, trained from scratch once per seed. From there, with equal steps, it goes on dense,
and is pruned by each method: events until half of the steps. One JSON line a run; what is in the file already is not
done again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import lightning as L
import torch
import torch.nn.functional as F
from lines import by_method, fill, methods_and_targets
from subjects import write
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from lightning_taylor import Gradual, Random, Taylor, TaylorBatch, TaylorPruning, WeightMagnitude

METHODS = {"Taylor": Taylor, "TaylorBatch": TaylorBatch, "WeightMagnitude": WeightMagnitude, "Random": Random}
CLASSES, SIDE = 4, 64


class Shapes(Dataset[tuple[Tensor, Tensor]]):
    """So many images of three to six shapes; the same for the same seed."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i >= self._count:
            raise IndexError(i)
        of = torch.Generator().manual_seed(1_000_003 * self._seed + i)
        image = 0.3 * torch.randn(3, SIDE, SIDE, generator=of)
        label = torch.zeros(SIDE, SIDE, dtype=torch.long)
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        for _ in range(int(torch.randint(3, 7, (1,), generator=of))):
            kind, down, right, size = (int(torch.randint(a, b, (1,), generator=of)) for a, b in _RANGES)
            v, h = y - down, x - right
            disc, square = v**2 + h**2 <= size**2, (v.abs() <= size) & (h.abs() <= size)
            triangle = (v <= size // 2) & (v >= 2 * h.abs() - size)
            inside = (disc, square, triangle)[kind]
            image[:, inside] = torch.randn(3, 1, generator=of) + 0.3 * torch.randn(3, int(inside.sum()), generator=of)
            label[inside] = kind + 1
        return image, label


_RANGES = ((0, 3), (0, SIDE), (0, SIDE), (6, 16))  # kind, two places, size


class Segmenter(L.LightningModule):
    """Adam with a cosine to zero."""

    def __init__(self, steps: int, lr: float) -> None:
        super().__init__()
        self.net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
        self.steps, self.lr, self.iou = steps, lr, MulticlassJaccardIndex(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["out"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.iou(self(x).argmax(1), y)
        self.log("iou", self.iou)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module: Segmenter, steps: int, seed: int, folder: Path, *callbacks: L.Callback) -> float:
    """Train on new images, and return the mean intersection over union in %."""
    trainer = L.Trainer(
        max_epochs=1, callbacks=list(callbacks), accelerator="auto", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder,
    )  # fmt: skip
    L.seed_everything(seed, verbose=False)
    trainer.fit(module, DataLoader(Shapes(16 * steps, seed + 1), 16), DataLoader(Shapes(500, 0), 50))
    return round(100 * float(trainer.callback_metrics["iou"]), 2)


def started(args: argparse.Namespace, seed: int, steps: int) -> Segmenter:
    """A net as trained from scratch, with the optimizer of the fit to come."""
    kept = args.out / f"start_lraspp_{seed}.pt"
    if not kept.exists():
        torch.manual_seed(seed)
        module = Segmenter(args.start, 2e-3)
        print(f"seed {seed}: {fit(module, args.start, 100 + seed, args.out)} % before", flush=True)
        torch.save(module.net.state_dict(), kept)
    module = Segmenter(steps, args.lr)
    module.net.load_state_dict(torch.load(kept))
    return module


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.3])
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--methods", nargs="+", default=["dense", *METHODS], choices=["dense", *METHODS])
    asked.add_argument("--start", type=int, default=600, help="steps of 16 images from scratch")
    asked.add_argument("--steps", type=int, default=300)
    asked.add_argument("--every", type=int, default=5)
    asked.add_argument("--lr", type=float, default=1e-3)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = asked.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def run(seed: int, method: str, target: float) -> dict[str, Any]:
        callbacks = []
        if method != "dense":
            schedule = Gradual(every_n_steps=args.every, start_step=5, end_step=args.steps // 2)
            callbacks = [TaylorPruning(target, schedule, METHODS[method](), measure_latency=False, verbose=False)]
        iou = fit(started(args, seed, args.steps), args.steps, 200 + seed, args.out, *callbacks)
        return {"iou": iou} | (callbacks[0].remaining if callbacks else {})

    jobs = methods_and_targets(args.seeds, args.methods, args.targets)
    lines = by_method(fill(args.out / "segmentation.jsonl", jobs, run), "iou")
    write(lines, "LR-ASPP, MobileNetV3-Large: mean intersection over union in %", args.out, "segmentation", "cpu")


if __name__ == "__main__":
    main()
