"""Table 1 for real networks: every criterion against the oracle, on training images, over several seeds.

For each seed the net is fine-tuned once. A sample of its channels is removed one by one (the oracle), and all criteria
are scored on the same images, in evaluation mode. What is finished is not done again.

    python tests/benchmarks/oracle.py squeezenet --data flowers12/ --weights squeezenet1_1.pt --out folder/
    python tests/benchmarks/oracle.py resnet20 --data cifar10_jpeg.zip --weights resnet20.th --out folder/
    python tests/benchmarks/oracle.py vgg16_bn --data cifar10_jpeg.zip --out folder/
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from flowers12 import fine_tuned
from study.curvature import gather_curvature
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.io import decode_image
from torchvision.transforms.v2.functional import normalize as standardise

from lightning_taylor.recipes.folder import ImageFolder
from lightning_taylor.recipes.weights import read_state_dict
from lightning_taylor.study.correlation import Correlations, correlate
from lightning_taylor.study.correlation_table import CorrelationTable
from lightning_taylor.study.oracle import measure_oracle, sample_channels
from lightning_taylor.study.score_batches import Gathered, every_criterion, gather_scores
from lightning_taylor.trace.api import trace_channels


class Block(nn.Module):
    """Two convolutions, and a shortcut without parameters: strided, padded with channels of zeros."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.stride, self.pad = stride, (o - i) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad)))


class ResNet(nn.Module):
    """He et al.'s net for CIFAR-10: three stages of as many blocks, 6 layers and 2 for each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        stages = [[(i, o, s), *[(o, o, 1)] * (blocks - 1)] for i, o, s in ((16, 16, 1), (16, 32, 2), (32, 64, 2))]
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*(Block(*b) for b in stage)) for stage in stages)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class ZippedImages(Dataset[tuple[Tensor, int]]):
    """``<split>/<class>/*.jpg`` in a zip, decoded as they are asked for."""

    def __init__(self, path: Path, split: str) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
        names = [n for n in self._zip.namelist() if f"{split}/" in n and n.endswith(".jpg")]
        classes = sorted({name.split("/")[-2] for name in names})
        self._items = [(name, classes.index(name.split("/")[-2])) for name in sorted(names)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        name, label = self._items[i]
        image = decode_image(torch.frombuffer(bytearray(self._zip.read(name)), dtype=torch.uint8))
        return standardise(image / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), label


def squeezenet(args: argparse.Namespace, seed: int) -> tuple[nn.Module, Dataset[Any], Tensor]:
    data = ImageFolder(str(args.data), size=128, batch_size=32, num_workers=0, cache=True)
    data.setup("fit")
    args.dense_epochs, args.folder, args.out = args.epochs, args.folder / "runs", args.folder / "starts"
    return fine_tuned(args, seed, data)[0].net, data.train_set(augment=False), torch.zeros(1, 3, 128, 128)


def resnet(args: argparse.Namespace, seed: int) -> tuple[nn.Module, Dataset[Any], Tensor]:
    """Of published weights, fine-tuned on these images."""

    def build() -> nn.Module:
        model = ResNet((int(args.net.removeprefix("resnet")) - 2) // 6)
        model.load_state_dict(read_state_dict(args.weights))
        return model

    def rates(model: nn.Module, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    return on_cifar10(args, seed, build, rates, steps=130)


def vgg16_bn(args: argparse.Namespace, seed: int) -> tuple[nn.Module, Dataset[Any], Tensor]:
    """VGG-16 with batch norm and half of the widths, trained here from scratch: once over 40,000 images."""

    def build() -> nn.Module:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        width = 3
        for plan in (32, 32, 0, 64, 64, 0, 128, 128, 128, 0, 256, 256, 256, 0, 256, 256, 256, 0):
            layers += [nn.Conv2d(width, plan, 3, 1, 1), nn.BatchNorm2d(plan), nn.ReLU()] if plan else [nn.MaxPool2d(2)]
            width = plan or width
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 10))

    def rates(model: nn.Module, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)

    return on_cifar10(args, seed, build, rates, steps=312)


def on_cifar10(
    args: argparse.Namespace,
    seed: int,
    build: Callable[[], nn.Module],
    rates: Callable[[nn.Module, int], torch.optim.lr_scheduler.LRScheduler],
    steps: int,
    batch: int = 128,
) -> tuple[nn.Module, Dataset[Any], Tensor]:
    """Train, or read what was trained before; each image is seen once, flipped at random."""
    data, model, kept = ZippedImages(args.data, "train"), build(), args.folder / f"start_{args.net}_{seed}.pt"
    if kept.exists():
        model.load_state_dict(torch.load(kept))
        return model, data, torch.zeros(1, 3, 32, 32)
    generator = torch.Generator().manual_seed(seed)
    schedule = rates(model, steps)
    some = torch.randperm(len(data), generator=generator)[: steps * batch].tolist()
    for x, y in DataLoader(Subset(data, some), batch):
        x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x, x.flip(3))
        schedule.optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        schedule.optimizer.step()
        schedule.step()
    torch.save(model.state_dict(), kept)
    return model, data, torch.zeros(1, 3, 32, 32)


NETS: dict[str, Callable[..., tuple[nn.Module, Dataset[Any], Tensor]]] = {
    "squeezenet": squeezenet,
    "resnet20": resnet,
    "resnet56": resnet,
    "vgg16_bn": vgg16_bn,
}


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def logits(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def run(args: argparse.Namespace, seed: int, gather: Callable[..., Gathered]) -> dict[str, Any]:
    model, data, example = NETS[args.net](argparse.Namespace(**vars(args)), seed)
    model.eval()
    graph = trace_channels(model, example)
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(data), generator=generator)[: args.images].tolist()  # type: ignore[arg-type]
    batches = list(DataLoader(Subset(data, some), args.batch))
    channels = sample_channels(graph, args.fraction, least=8, generator=generator)
    began = time.perf_counter()
    oracle = measure_oracle(
        model, graph, batches, loss, channels=channels, state=args.folder / f"oracle_{args.net}_{seed}.pt"
    )
    measured = time.perf_counter() - began
    gathered = gather(seed, model, graph, batches)
    found = {
        "seed": seed,
        "loss": oracle.loss,
        "of_channels": sum(group.size for group in graph.groups.values()),
        "oracle_seconds": round(measured, 1),
        "absolute": correlate(oracle, gathered, resamples=args.resamples).to_plain(),
        "signed": correlate(oracle, gathered, signed=True, resamples=0).to_plain(),
    }
    return found | {"settings": {k: getattr(args, k) for k in ("images", "batch", "fraction", "epochs")}}


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The correlations of both parts' criteria; the rest is of the first."""
    for kind, part in itertools.product(("absolute", "signed"), ("scopes", "layers", "resampled")):
        one[kind][part] |= other[kind][part]
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="not for vgg16_bn, which is trained here")
    parser.add_argument("--out", dest="folder", type=Path, default=Path("oracle"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--fraction", type=float, default=0.1, help="of each group's channels, 8 at least")
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning, for the SqueezeNet")
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parts: dict[str, Callable[..., Gathered]] = {
        "": lambda seed, model, graph, data: gather_scores(model, graph, every_criterion(seed=seed), data, loss),
        "_exact": lambda _, model, graph, data: gather_curvature(model, graph, data, logits),
    }
    rows = []
    for seed in args.seeds:
        found = []
        for part, gather in parts.items():
            file = args.folder / f"{args.net}_{seed}{part}.json"
            if not file.exists():
                file.write_text(json.dumps(run(args, seed, gather)))
            found.append(json.loads(file.read_text()))
        rows.append(joined(*found))
        print(f"seed {seed}: loss {rows[-1]['loss']:.4f}, oracle {rows[-1]['oracle_seconds']} s", flush=True)
    for kind in ("absolute", "signed"):
        print(f"\noracle, {kind}:")
        table = CorrelationTable([Correlations(**row[kind]) for row in rows])
        table.show()
        table.write(args.folder / f"{args.net}_{kind}_table.json")
        if kind == "absolute":
            table.figure().savefig(args.folder / f"{args.net}_table.png", dpi=130)


if __name__ == "__main__":
    main()
