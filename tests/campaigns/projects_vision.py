"""Fine-tuning with libraries of vision networks: each in a small module, or in the library's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from campaigns.project_fit import Project
from campaigns.projects_lightning import CLASSES, images


class Supervised(L.LightningModule):
    """The small module that people write around a network of a library."""

    def __init__(self, build: Callable[[], nn.Module], loss: Callable[..., Tensor] = F.cross_entropy) -> None:
        super().__init__()
        self.net, self.loss = build(), loss

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def supervised(
    package: str, build: Callable[[], nn.Module], batch: Any, loss: Any = F.cross_entropy, **more: Any
) -> Project:
    """A network of a library in the small module."""
    return Project(
        package, lambda: Supervised(build, loss), batch, given=lambda: {"build": build, "loss": loss}, **more
    )


def timm(name: str, **more: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **more)

    return build


class Features(nn.Module):
    """The pyramid of a network under a head of its own, by ``features_only``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        self.backbone = timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3))
        widths = self.backbone.feature_info.channels()
        self.lateral = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in widths)
        self.head = nn.Conv2d(32, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [conv(m) for conv, m in zip(self.lateral, self.backbone(x), strict=True)]
        whole = sum(F.interpolate(m, maps[0].shape[2:]) for m in maps)
        return self.head(whole).mean((2, 3))


def masks(size: int = 64, count: int = 2, classes: int = CLASSES, dims: int = 2, colors: int = 3) -> Any:
    """A batch of images and the class of each pixel."""
    return lambda g: (
        torch.rand(count, colors, *dims * (size,), generator=g),
        torch.randint(classes, (count, *dims * (size,)), generator=g),
    )


def smp(kind: str, encoder: str, **more: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch as library

        return getattr(library, kind)(encoder, encoder_weights=None, classes=CLASSES, **more)

    return build


class HuggingFace(L.LightningModule):
    """A model of transformers, called with a dict, which computes its loss itself."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.model = build()

    def forward(self, pixel_values: Tensor, labels: Any = None) -> Any:
        return self.model(pixel_values=pixel_values, labels=labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(**batch)
        self.log("train_loss", outputs.loss)
        return outputs.loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-5)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32,
                  patch_size=8, num_labels=CLASSES)
    )  # fmt: skip


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48], depths=[2, 2, 2], layer_type="basic",
                     num_labels=CLASSES)
    )  # fmt: skip


def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4],
                        decoder_hidden_size=32, num_labels=CLASSES)
    )  # fmt: skip


def detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    return DetrForObjectDetection(
        DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
                   d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                   encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=10, num_labels=CLASSES)
    )  # fmt: skip


def detr_that_trains_whole() -> nn.Module:
    """The library freezes the backbone of a new DETR."""
    net = detr()
    net.model.unfreeze_backbone()  # type: ignore[operator, union-attr]
    return net


def hugging_face(build: Callable[[], nn.Module], batch: Any, **more: Any) -> Project:
    return Project("transformers", lambda: HuggingFace(build), batch, given=lambda: {"build": build}, **more)


def labelled(size: int = 32) -> Any:
    return lambda g: dict(zip(("pixel_values", "labels"), images(size)(g), strict=True))


def segmented(g: torch.Generator) -> Any:
    return dict(zip(("pixel_values", "labels"), masks(64)(g), strict=True))


def detections(g: torch.Generator) -> Any:
    """As an image processor of DETR gives them: a list of dicts, with as many boxes as there are."""
    labels = [
        {
            "class_labels": torch.randint(CLASSES, (1 + n,), generator=g),
            "boxes": 0.3 + 0.3 * torch.rand(1 + n, 4, generator=g),
        }
        for n in range(3)
    ]
    return {"pixel_values": torch.rand(3, 3, 64, 64, generator=g), "labels": labels}


def unet_3d() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(3, 1, CLASSES, channels=(8, 16, 32), strides=(2, 2), num_res_units=2)


def unet_3d_batch_norm() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(3, 1, CLASSES, channels=(8, 16, 32), strides=(2, 2), num_res_units=2, norm="batch")


def dynunet() -> nn.Module:
    from monai.networks.nets import DynUNet

    return DynUNet(3, 1, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32], res_block=True)


def dynunet_deep() -> nn.Module:
    from monai.networks.nets import DynUNet

    return DynUNet(3, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[8, 16, 32, 32], deep_supervision=True)


def dice(out: Tensor, y: Tensor) -> Tensor:
    """MONAI's own loss; of deep supervision the outputs are stacked."""
    from monai.losses import DiceCELoss

    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    outputs = out.unbind(1) if out.ndim == 6 else (out,)
    return torch.stack([loss(one, y[:, None]) for one in outputs]).mean()


class Detector(L.LightningModule):
    """Ultralytics' network, which computes its loss when it is given the whole batch."""

    def __init__(self, name: str = "yolov8n.yaml") -> None:
        super().__init__()
        self.save_hyperparameters()
        os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
        os.environ.setdefault("YOLO_OFFLINE", "true")
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.tasks import DetectionModel

        self.model = DetectionModel(name, nc=CLASSES, verbose=False)
        self.model.args = get_cfg()

    def forward(self, x: Tensor) -> Any:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, _ = self.model(batch)
        self.log("loss", loss.sum())
        return loss.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9, nesterov=True)


def boxes(g: torch.Generator) -> Any:
    """As ultralytics collates them: all boxes of the batch in one tensor, and whose each is."""
    return {
        "img": torch.rand(2, 3, 64, 64, generator=g),
        "cls": torch.randint(CLASSES, (5, 1), generator=g).float(),
        "bboxes": 0.3 + 0.3 * torch.rand(5, 4, generator=g),
        "batch_idx": torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]),
    }


class Metric(L.LightningModule):
    """Embeddings under a triplet loss with a miner."""

    def __init__(self) -> None:
        super().__init__()
        from pytorch_metric_learning import losses, miners
        from torchvision.models import resnet18

        self.trunk = resnet18(weights=None)
        self.trunk.fc = nn.Identity()
        self.embedder = nn.Linear(512, 64)
        self.loss, self.miner = losses.TripletMarginLoss(margin=0.1), miners.MultiSimilarityMiner(epsilon=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embedder(self.trunk(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        embeddings = self(x)
        return self.loss(embeddings, y, self.miner(embeddings, y))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.trunk.parameters(), lr=1e-5),
            torch.optim.Adam(self.embedder.parameters(), lr=1e-4),
        ][:1]


class Augmented(Supervised):
    """Kornia's augmentations on the device, as a part of the module."""

    def __init__(self) -> None:
        super().__init__(timm("resnet10t"))
        import kornia.augmentation as K

        self.augment = nn.Sequential(K.RandomHorizontalFlip(), K.ColorJitter(0.1, 0.1, 0.1, 0.1), K.RandomErasing())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return (self.augment(x) if self.trainer.training else x), y


SAVING = "for save_pretrained and from_pretrained: a class with PrunedPretrainedMixin"
NORMS = {"options": {"allow_inexact_norms": True}, "know": "allow_inexact_norms=True"}

PROJECTS = {
    "timm/resnet18": supervised("timm", timm("resnet18"), images(64)),
    "timm/efficientnet_b0": supervised("timm", timm("efficientnet_b0"), images(64)),
    "timm/convnext_atto": supervised("timm", timm("convnext_atto"), images(64)),
    "timm/vit_tiny": supervised("timm", timm("vit_tiny_patch16_224", img_size=64), images(64)),
    "timm/hrnet_w18_small": supervised("timm", timm("hrnet_w18_small"), images(64), target=0.7),
    "timm/features_only": supervised("timm", lambda: Features("mobilenetv3_small_100"), images(64)),
    "smp/Unet": supervised("segmentation-models-pytorch", smp("Unet", "resnet18"), masks()),
    "smp/UnetPlusPlus": supervised("segmentation-models-pytorch", smp("UnetPlusPlus", "mobilenet_v2"), masks()),
    "smp/DeepLabV3Plus": supervised("segmentation-models-pytorch", smp("DeepLabV3Plus", "resnet18"), masks()),
    "transformers/vit": hugging_face(vit, labelled(), target=0.8, know=SAVING),
    "transformers/resnet": hugging_face(resnet, labelled(), know=SAVING),
    "transformers/segformer": hugging_face(segformer, segmented, target=0.8, know=SAVING),
    "transformers/detr": hugging_face(detr, detections, target=0.8, know="its backbone is frozen: unfreeze_backbone()"),
    "transformers/detr, unfrozen": hugging_face(detr_that_trains_whole, detections, know="unfreeze_backbone()"),
    "monai/UNet": supervised("monai", unet_3d, masks(16, dims=3, colors=1), dice),
    "monai/UNet, batch norm": supervised("monai", unet_3d_batch_norm, masks(16, dims=3, colors=1), dice),
    "monai/DynUNet": supervised("monai", dynunet, masks(16, dims=3, colors=1), dice),
    "monai/DynUNet, deep supervision": supervised("monai", dynunet_deep, masks(16, dims=3, colors=1), dice),
    "ultralytics/yolov8n": Project("ultralytics", Detector, boxes),
    "pytorch-metric-learning/triplets": Project("pytorch-metric-learning", Metric, images(64, 8)),
    "kornia/augmentation": Project("kornia", Augmented, images(64)),
}
