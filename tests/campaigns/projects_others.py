"""Self-supervised learning, remote sensing, anomalies, sound and time series, in the libraries' own modules."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from campaigns.project_fit import Project
from campaigns.projects_lightning import CLASSES
from campaigns.projects_vision import NORMS, supervised


def views(count: int, size: int = 32, examples: int = 4) -> Any:
    """As lightly's data sets give them: a list of views, classes and file names."""

    def batch(g: torch.Generator) -> Any:
        images = [torch.rand(examples, 3, size, size, generator=g) for _ in range(count)]
        return [images, torch.zeros(examples).long(), ["name"] * examples]

    return batch


def trunk() -> nn.Module:
    return nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-1])


class SimCLR(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        self.backbone, self.projection_head = trunk(), SimCLRProjectionHead(512, 128, 64)
        self.criterion = NTXentLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x0, x1 = batch[0]
        return self.criterion(self.forward(x0), self.forward(x1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class BYOL(L.LightningModule):
    """A student with a predictor, and its teacher, a moving average."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        self.backbone, self.projection_head = trunk(), BYOLProjectionHead(512, 128, 64)
        self.prediction_head = BYOLPredictionHead(64, 128, 64)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        for teacher in (self.backbone_momentum, self.projection_head_momentum):
            deactivate_requires_grad(teacher)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))

    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        x0, x1 = batch[0]
        p0, z0, p1, z1 = self.forward(x0), self.forward_momentum(x0), self.forward(x1), self.forward_momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class MoCo(L.LightningModule):
    """A queue of keys, whose length is no width."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        self.backbone, self.projection_head = trunk(), MoCoProjectionHead(512, 128, 64)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(memory_bank_size=(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
        query, key = batch[0]
        return self.criterion(self.forward(query), self.forward_momentum(key))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class DINO(L.LightningModule):
    """A teacher sees two large views, the student those and small ones."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        backbone = trunk()
        self.student_backbone, self.student_head = backbone, DINOProjectionHead(512, 64, 32, 128, freeze_last_layer=1)
        self.teacher_backbone, self.teacher_head = copy.deepcopy(backbone), DINOProjectionHead(512, 64, 32, 128)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=128, warmup_teacher_temp_epochs=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.student_head(self.student_backbone(x).flatten(start_dim=1))

    def forward_teacher(self, x: Tensor) -> Tensor:
        return self.teacher_head(self.teacher_backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.student_backbone, self.teacher_backbone, m=0.99)
        update_momentum(self.student_head, self.teacher_head, m=0.99)
        seen = [view.to(self.device) for view in batch[0]]
        teacher_out = [self.forward_teacher(view) for view in seen[:2]]
        return self.criterion(teacher_out, [self.forward(view) for view in seen], epoch=self.current_epoch)

    def on_after_backward(self) -> None:
        self.student_head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.001)


def torchgeo(task: str, **arguments: Any) -> Callable[[], L.LightningModule]:
    def build() -> L.LightningModule:
        import torchgeo.trainers

        return getattr(torchgeo.trainers, task)(**arguments)

    return build


def detection() -> L.LightningModule:
    """Torchvision's Faster R-CNN, which enlarges each image to 800 pixels unless it is told."""
    task: Any = torchgeo("ObjectDetectionTask", backbone="resnet18", num_classes=CLASSES)()
    task.model.transform.min_size, task.model.transform.max_size = (64,), 64
    return task


def scenes(**more: Callable[[torch.Generator], Any]) -> Any:
    """A dict as torchgeo's data sets give it: image first."""
    return lambda g: {"image": torch.rand(2, 3, 64, 64, generator=g), **{key: make(g) for key, make in more.items()}}


def classes(g: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (2,), generator=g)


def mask(g: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (2, 64, 64), generator=g)


def heights(g: torch.Generator) -> Tensor:
    return torch.rand(2, 1, 64, 64, generator=g)


def corners(g: torch.Generator) -> list[Tensor]:
    """Boxes of each image, one of the first and two of the second."""
    return [torch.tensor([[4.0, 4.0, 30.0, 30.0], [20.0, 10.0, 60.0, 50.0]])[: n + 1] for n in range(2)]


def labels(g: torch.Generator) -> list[Tensor]:
    return [torch.randint(1, CLASSES, (n + 1,), generator=g) for n in range(2)]


def anomalies(size: int, count: int = 4) -> Any:
    """Anomalib's own batch, a dataclass with much that is None."""

    def batch(g: torch.Generator) -> Any:
        from anomalib.data import ImageBatch

        images = torch.rand(count, 3, size, size, generator=g)
        return ImageBatch(image=images, gt_label=torch.zeros(count).bool(), gt_mask=torch.zeros(count, size, size))

    return batch


@contextmanager
def no_weights() -> Iterator[None]:
    """As if the weights that anomalib downloads were random."""
    import timm

    create = timm.create_model
    with mock.patch("timm.create_model", lambda *args, **kwargs: create(*args, **{**kwargs, "pretrained": False})):
        yield


@contextmanager
def no_downloads() -> Iterator[None]:
    """As if the teacher were random, and the images of ImageNette, too."""
    from anomalib.models import EfficientAd

    def images(self: Any, size: Any) -> None:
        self.imagenet_loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.rand(8, 3, *size), torch.zeros(8)), batch_size=1
        )
        self.imagenet_iterator = iter(self.imagenet_loader)

    with mock.patch.multiple(EfficientAd, prepare_pretrained_model=lambda self: None, prepare_imagenette_data=images):
        yield


PLAIN = {"pre_processor": False, "post_processor": False, "evaluator": False, "visualizer": False}


def stfpm() -> L.LightningModule:
    from anomalib.models import Stfpm

    return Stfpm(backbone="resnet18", **PLAIN)


def draem() -> L.LightningModule:
    """With two textures in place of the data set that it would download."""
    from anomalib.models import Draem

    folder = Path(tempfile.gettempdir()) / "textures"
    folder.mkdir(exist_ok=True)
    for n in range(2):
        torchvision.io.write_png(torch.randint(255, (3, 64, 64), dtype=torch.uint8), str(folder / f"{n}.png"))
    return Draem(dtd_dir=folder, enable_sspcab=True, **PLAIN)


def efficient_ad() -> L.LightningModule:
    from anomalib.models import EfficientAd

    return EfficientAd(model_size="small", padding=True, **PLAIN)


def asteroid(build: Callable[[], nn.Module], **more: Any) -> Project:
    """A model in asteroid's System, with its loss."""

    def system() -> Any:
        from asteroid.engine.system import System
        from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr

        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        return System(model, optimizer, PITLossWrapper(pairwise_neg_sisdr, pit_from="pw_mtx"), train_loader=None)

    def given() -> dict[str, Any]:
        return {"model": build(), "optimizer": None, "loss_func": None, "train_loader": None}

    def mixtures(g: torch.Generator) -> Any:
        sources = torch.randn(2, 2, 4000, generator=g)
        return [sources.sum(1), sources]

    return Project("asteroid", system, mixtures, old_name=True, trainer={"logger": True}, given=given, **more)


def conv_tasnet() -> nn.Module:
    from asteroid.models import ConvTasNet

    return ConvTasNet(2, n_blocks=3, n_repeats=2, bn_chan=16, hid_chan=32, skip_chan=16, n_filters=32, kernel_size=16)


def dcunet() -> nn.Module:
    from asteroid.models import DCUNet

    return DCUNet("DCUNet-10", stft_n_filters=256, stft_kernel_size=256, stft_stride=64, n_src=2, fix_length_mode="pad")


def sudormrf() -> nn.Module:
    from asteroid.models import SuDORMRFNet

    return SuDORMRFNet(2, bn_chan=16, num_blocks=2, upsampling_depth=3, n_filters=32)


class InceptionModule(nn.Module):
    """Convolutions of three lengths beside a pooled path, as for time series."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(into, out, 1, bias=False)
        self.convs = nn.ModuleList(nn.Conv1d(out, out, k, padding=k // 2, bias=False) for k in (9, 19, 39))
        self.pooled = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(into, out, 1, bias=False))
        self.bn = nn.BatchNorm1d(4 * out)

    def forward(self, x: Tensor) -> Tensor:
        short = self.bottleneck(x)
        return F.relu(self.bn(torch.cat([conv(short) for conv in self.convs] + [self.pooled(x)], 1)))


class InceptionTime(nn.Module):
    """Six modules with a shortcut around each three."""

    def __init__(self, into: int = 3, out: int = 8) -> None:
        super().__init__()
        widths = [into] + [4 * out] * 6
        self.inceptions = nn.ModuleList(InceptionModule(width, out) for width in widths[:-1])
        self.shortcuts = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, 4 * out, 1, bias=False), nn.BatchNorm1d(4 * out))
            for width in (into, 4 * out)
        )
        self.fc = nn.Linear(4 * out, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for n, inception in enumerate(self.inceptions):
            x = inception(x)
            if n % 3 == 2:
                x = kept = F.relu(x + self.shortcuts[n // 3](kept))
        return self.fc(x.mean(2))


class TemporalClassifier(nn.Module):
    """A TCN under a linear layer on the last step."""

    def __init__(self) -> None:
        super().__init__()
        from pytorch_tcn import TCN

        self.tcn, self.fc = TCN(3, [16, 16, 32], kernel_size=3, dropout=0.1), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tcn(x)[:, :, -1])


def series(g: torch.Generator) -> Any:
    return torch.randn(4, 3, 64, generator=g), torch.randint(CLASSES, (4,), generator=g)


PROJECTS = {
    "lightly/SimCLR": Project("lightly", SimCLR, views(2)),
    "lightly/BYOL": Project("lightly", BYOL, views(2)),
    "lightly/MoCo": Project("lightly", MoCo, views(2)),
    "lightly/DINO": Project("lightly", DINO, views(4)),
    "torchgeo/classification": Project(
        "torchgeo", torchgeo("ClassificationTask", model="resnet18", num_classes=CLASSES), scenes(label=classes)
    ),
    "torchgeo/segmentation": Project(
        "torchgeo", torchgeo("SemanticSegmentationTask", backbone="resnet18", num_classes=CLASSES), scenes(mask=mask)
    ),
    "torchgeo/regression": Project(
        "torchgeo", torchgeo("PixelwiseRegressionTask", model="unet", backbone="resnet18"), scenes(mask=heights)
    ),
    "torchgeo/detection": Project("torchgeo", detection, scenes(bbox_xyxy=corners, label=labels)),
    "torchgeo/BYOL": Project("torchgeo", torchgeo("BYOLTask", model="resnet18"), scenes()),
    "anomalib/STFPM": Project("anomalib", stfpm, anomalies(64), around=no_weights),
    "anomalib/DRAEM": Project("anomalib", draem, anomalies(64, 2)),
    "anomalib/EfficientAD": Project(
        "anomalib", efficient_ad, anomalies(256, 1), datamodule=True, around=no_downloads,
        know="its step reads an iterator that no copy has, so it is traced by its calls",
    ),
    "asteroid/ConvTasNet": asteroid(conv_tasnet),
    "asteroid/DCUNet": asteroid(dcunet),
    "asteroid/SuDORM-RF": asteroid(sudormrf),
    "asteroid/SuDORM-RF, inexact norms": asteroid(sudormrf, **NORMS),
    "asteroid/ConvTasNet, inexact norms": asteroid(conv_tasnet, **NORMS),
    "series/InceptionTime": supervised("", InceptionTime, series),
    "pytorch-tcn/TCN": supervised("pytorch-tcn", TemporalClassifier, series),
}  # fmt: skip
