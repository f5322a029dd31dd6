"""What keeps more accuracy: whole groups of a convolution, or the same channels of every group? And of heads?

A small ResNeXt (three stages of two blocks) is trained on CIFAR-10 once per seed; with ``--heads`` a small vision
transformer (four layers). From there it goes on for equal steps, with equal data order and learning rates: dense, and
pruned to each target with ``conv_groups`` (``attention_heads``) "whole" and "spread". One JSON line a run; what is in
the file already is not done again.

On three seeds, accuracy with "whole" less that with "spread" at 50 % and 30 % of the FLOPs, in points, with the
standard deviation of that difference: 16 groups of 4 channels +1.2 ± 0.4 and +2.8 ± 0.2, 8 groups of 8 +0.7 ± 0.5 and
+0.7 ± 1.0, 4 groups of 16 -0.4 ± 0.5 and -1.0 ± 0.8. Neither always wins. Only the first is beyond doubt, and the third
leans the other way: in both, the choice that makes more units is ahead, and that is the one that "auto" takes.

    python tests/benchmarks/grouped.py --data cifar10_jpeg.zip --steps 300 --out 8x8.jsonl --groups 8 --width 8
    python tests/benchmarks/grouped.py --data cifar10_jpeg.zip --steps 300 --out heads.jsonl --heads 6 --width 16
"""

from __future__ import annotations

import argparse
import copy
import logging
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from accuracy import Classifier, flops
from lines import by_method, fill, methods_and_targets
from nets import ZippedImages, transformer
from subjects import write
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.models.resnet import Bottleneck, conv1x1

from lightning_taylor import Gradual, TaylorPruning

CHOICES = ("whole", "spread")


def resnext(groups: int, width: int) -> nn.Module:
    """Every grouped convolution has the same groups; the stream has 64, 128 and 256 channels."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 5, 4, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    inputs = 32
    for planes, stride in ((16, 1), (32, 2), (64, 2)):
        down = nn.Sequential(conv1x1(inputs, 4 * planes, stride), nn.BatchNorm2d(4 * planes))
        inputs, size = 4 * planes, {"groups": groups, "base_width": 64 * width // planes}
        layers += [Bottleneck(down[0].in_channels, planes, stride, down, **size), Bottleneck(inputs, planes, **size)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def decoded(path: Path, split: str) -> TensorDataset:
    """All images of a split, decoded once."""
    images, labels = zip(*ZippedImages(path, split), strict=True)
    return TensorDataset(torch.stack(images), torch.tensor(labels))


def trained(
    net: nn.Module, data: TensorDataset, steps: int, lr: float, args: argparse.Namespace, *callbacks: L.Callback
) -> None:
    """Go on with a net, in place, for so many steps."""
    order = torch.cat([torch.randperm(len(data)) for _ in range(-(-steps * args.batch // len(data)))])
    loader = DataLoader(Subset(data, order[: steps * args.batch].tolist()), args.batch)
    trainer = L.Trainer(
        max_epochs=1, callbacks=list(callbacks), accelerator="auto", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=args.out.with_suffix(""),
    )  # fmt: skip
    trainer.fit(Classifier(net, steps, lr), loader)


@torch.no_grad()
def accuracy(net: nn.Module, data: TensorDataset) -> float:
    """Per cent of the images that are named rightly."""
    net.eval()
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in DataLoader(data, 250))
    return 100 * right / len(data)


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    train, test = decoded(args.data, "train"), decoded(args.data, "test")
    option, example = "attention_heads" if args.heads else "conv_groups", torch.zeros(1, 3, 32, 32)
    schedule = Gradual(every_n_steps=5, start_step=5, end_step=args.steps // 2)

    @cache
    def start(seed: int) -> tuple[nn.Module, float]:
        L.seed_everything(seed, verbose=False)
        net = transformer(args.heads, args.width) if args.heads else resnext(args.groups, args.width)
        trained(net, train, args.dense_steps, args.dense_lr, args)
        return net, accuracy(net, test)

    def run(seed: int, method: str, target: float) -> dict[str, Any]:
        dense, before = start(seed)
        L.seed_everything(1000 + seed, verbose=False)
        net, options = copy.deepcopy(dense), {"measure_latency": False, option: method}
        pruning = [] if method == "dense" else [TaylorPruning(target, schedule, **options)]
        trained(net, train, args.steps, args.lr, args, *pruning)
        share = flops(net, example) / flops(dense, example)
        shapes = [[m.groups, m.in_channels // m.groups] for m in net.modules() if getattr(m, "groups", 1) > 1]
        shapes += [[m.num_heads, m.head_dim] for m in net.modules() if isinstance(m, nn.MultiheadAttention)]
        return {"accuracy": accuracy(net, test), "flops": round(share, 4), "before": before, "groups": shapes}

    jobs = methods_and_targets(args.seeds, ["dense", *CHOICES], args.targets)
    write(by_method(fill(args.out, jobs, run), "accuracy"), option, args.out.parent, args.out.stem, "cpu")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("grouped.jsonl"))
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--heads", type=int, default=0, help="of a transformer, in place of the ResNeXt")
    parser.add_argument("--width", type=int, default=8, help="channels of each group, or coordinates of each head")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--dense-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dense-lr", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
