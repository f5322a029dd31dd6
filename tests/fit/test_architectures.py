"""Fits with events, interrupted and resumed, for nets whose channels are not only plain feature maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from fit.boring import kept_trainer
from lightning_taylor import Gradual, TaylorPruning, load_pruned

STEPS, KEPT = 12, 7


class UNet(nn.Module):
    """Two levels, transposed convolutions, skips that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.norm, self.up = nn.BatchNorm2d(12), nn.ConvTranspose2d(12, 8, 2, 2)
        self.fuse, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.one(x))
        x = self.up(F.relu(self.norm(self.two(F.max_pool2d(skip, 2)))))
        return self.out(F.relu(self.fuse(torch.cat([skip, x], 1)))).mean((2, 3))


class Recurrent(nn.Module):
    """Frames through convolutions, their features through an LSTM, whose input shrinks with them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 12, 3, 2)
        self.lstm, self.head = nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        frames = F.relu(self.two(F.relu(self.one(x.unfold(3, 8, 8).permute(0, 3, 1, 2, 4).flatten(0, 1)))))
        return self.head(self.lstm(frames.mean((2, 3)).unflatten(0, (len(x), -1)))[0][:, -1])


def resnext() -> nn.Module:
    return torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4, groups=8, width_per_group=4)


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=4)


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer(
        [4, 4], 24, [2, 2], [3, 6], [4, 4], stochastic_depth_prob=0.0, num_classes=4
    )


def faster_rcnn() -> nn.Module:
    few = {f"rpn_post_nms_top_n_{mode}": 16 for mode in ("train", "test")}
    return torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64, **few
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnext": resnext,
    "shufflenet": lambda: torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 48], num_classes=4),
    "vit": vit,
    "swin": swin,
    "unet": UNet,
    "recurrent": Recurrent,
    "faster_rcnn": faster_rcnn,
}


class Loader:
    """One batch again and again: where in an epoch a loader goes on is not what is tested here."""

    def __init__(self) -> None:
        self.batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(4)

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * STEPS)

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to go on with."""


class Net(L.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = NETS[name]()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Detector(Net):
    """Faster R-CNN, whose losses are its own."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.net(list(F.interpolate(x, 64)))
        return torch.cat([image["boxes"].flatten() for image in found])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 24.0, 60.0, 60.0]])
        targets = [{"boxes": boxes, "labels": torch.tensor([1, 1 + int(label) % 2])} for label in batch[1]]
        return sum(self.net(list(F.interpolate(batch[0], 64)), targets).values(), torch.zeros(()))


def kind(name: str) -> type[Net]:
    return Detector if name == "faster_rcnn" else Net


def fit(name: str, folder: Path, ckpt: Path | None = None) -> tuple[Net, TaylorPruning]:
    # Heads are few and dear: without normalisation they go as soon as they are worth least.
    pruning = TaylorPruning(0.6, Gradual(2, 2, 10), normalization="none", measure_latency=False)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=KEPT, save_top_k=-1)
    trainer = kept_trainer(folder, [pruning, keep], STEPS)
    model = kind(name)(name)
    trainer.fit(model, Loader(), ckpt_path=ckpt)
    return model, pruning


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "faster_rcnn" else []) for name in NETS]
)
def test_a_fit_lands_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight, pruning = fit(name, tmp_path / "straight")
    assert pruning.remaining["flops"] <= 0.6
    resumed, _ = fit(name, tmp_path / "resumed", tmp_path / "straight" / f"step={KEPT}.ckpt")
    assert {n: tuple(t.shape) for n, t in straight.state_dict().items()} != {
        n: tuple(t.shape) for n, t in kind(name)(name).state_dict().items()
    }
    for (key, one), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    loaded = load_pruned(kind(name), tmp_path / "straight" / f"step={KEPT}.ckpt")
    assert [type(m) for m in loaded.modules()][1:]
    assert torch.isfinite(loaded.eval()(x)).all()
