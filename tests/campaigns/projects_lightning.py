"""The examples of Lightning's own documentation, in our words, and a module as a template with Hydra has it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torchmetrics import MeanMetric, MinMetric
from torchmetrics.classification import MulticlassAccuracy

from campaigns.project_fit import Project

CLASSES = 4


def images(size: int = 32, count: int = 4, classes: int = CLASSES, colors: int = 3) -> Any:
    """A batch of images and their classes."""
    return lambda g: (
        torch.rand(count, colors, size, size, generator=g),
        torch.randint(classes, (count,), generator=g),
    )


class AutoEncoder(L.LightningModule):
    """The first page of the documentation: two small stacks of linear layers, called one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(28 * 28, 64), nn.ReLU(), nn.Linear(64, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 28 * 28))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, "val")

    def _loss(self, batch: Any, stage: str) -> Tensor:
        x = batch[0].flatten(1)
        loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log(f"{stage}_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Generator(nn.Module):
    def __init__(self, latent: int, shape: tuple[int, int, int]) -> None:
        super().__init__()

        def block(into: int, out: int, normalize: bool = True) -> list[nn.Module]:
            return [nn.Linear(into, out), *([nn.BatchNorm1d(out, 0.8)] if normalize else []), nn.LeakyReLU(0.2, True)]

        self.shape = shape
        self.model = nn.Sequential(
            *block(latent, 32, False),
            *block(32, 64),
            *block(64, 128),
            nn.Linear(128, torch.Size(shape).numel()),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.model(z).view(z.size(0), *self.shape)


class Discriminator(nn.Module):
    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.model = nn.Sequential(
            nn.Linear(size, 64), nn.LeakyReLU(0.2, True), nn.Linear(64, 32), nn.LeakyReLU(0.2, True), nn.Linear(32, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image.flatten(1))


class GAN(L.LightningModule):
    """Manual optimization of two opponents by turns."""

    def __init__(self, latent: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        shape = (1, 16, 16)
        self.generator, self.discriminator = Generator(latent, shape), Discriminator(shape)
        self.validation_z = torch.randn(8, latent)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, _ = batch
        g, d = self.optimizers()  # type: ignore[misc]
        z = torch.randn(real.shape[0], self.hparams["latent"]).type_as(real)
        ones, zeros = torch.ones(len(real), 1).type_as(real), torch.zeros(len(real), 1).type_as(real)
        self.toggle_optimizer(g)
        loss = F.binary_cross_entropy_with_logits(self.discriminator(self(z)), ones)
        self.log("g_loss", loss, prog_bar=True)
        self.manual_backward(loss)
        g.step()
        g.zero_grad()
        self.untoggle_optimizer(g)
        self.toggle_optimizer(d)
        seen = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        seen = (seen + F.binary_cross_entropy_with_logits(self.discriminator(self(z).detach()), zeros)) / 2
        self.log("d_loss", seen, prog_bar=True)
        self.manual_backward(seen)
        d.step()
        d.zero_grad()
        self.untoggle_optimizer(d)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(self.validation_z.type_as(batch[0]))

    def configure_optimizers(self) -> Any:
        opponents = self.generator, self.discriminator
        return [torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in opponents]


class TransferLearning(L.LightningModule):
    """A backbone under ``BackboneFinetuning``, in front of a head."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        net = torchvision.models.resnet18(weights=None)
        self.backbone = nn.Sequential(*list(net.children())[:-1])
        self.head = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        self.accuracy, self.seen = MulticlassAccuracy(CLASSES), MulticlassAccuracy(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.log("train_acc", self.seen(logits, y), prog_bar=True)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", self.accuracy(self(x), y), prog_bar=True)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.hparams["lr"])
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.1)]


class Transferred(L.LightningModule):
    """The usual one, a network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
            nn.Flatten(), nn.Linear(32 * 14 * 14, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adadelta(self.parameters(), lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]


class Templated(L.LightningModule):
    """As a template with Hydra has it: the network and the optimizer are arguments, made from a configuration."""

    def __init__(self, net: nn.Module, optimizer: Any, scheduler: Any = None, compile: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc, self.val_acc = MulticlassAccuracy(CLASSES), MulticlassAccuracy(CLASSES)
        self.train_loss, self.val_loss, self.val_best = MeanMetric(), MeanMetric(), MinMetric()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_start(self) -> None:
        for metric in (self.val_loss, self.val_acc, self.val_best):
            metric.reset()

    def model_step(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        logits = self.forward(x)
        return self.criterion(logits, y), logits.argmax(1), y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, guesses, targets = self.model_step(batch)
        self.train_loss(loss)
        self.train_acc(guesses, targets)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, guesses, targets = self.model_step(batch)
        self.val_loss(loss)
        self.val_acc(guesses, targets)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.val_best(self.val_loss.compute())
        self.log("val/best", self.val_best.compute(), sync_dist=True)

    def setup(self, stage: str) -> None:
        if self.hparams["compile"] and stage == "fit":
            self.net = torch.compile(self.net)  # type: ignore[assignment]

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.hparams["optimizer"](params=self.trainer.model.parameters())
        scheduler = self.hparams["scheduler"](optimizer=optimizer)
        when = {"scheduler": scheduler, "monitor": "val/loss", "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": when}


class Dense(nn.Module):
    """A stack of linear layers with their norms."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for into, out in pairwise(sizes[:-1]):
            layers += [nn.Linear(into, out), nn.BatchNorm1d(out), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


HYDRA = {
    "_target_": "campaigns.projects_lightning.Templated",
    "net": {"_target_": "campaigns.projects_lightning.Dense", "sizes": [3 * 16 * 16, 64, 128, 64, CLASSES]},
    "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3, "weight_decay": 0.0},
    "scheduler": {
        "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "_partial_": True, "mode": "min", "patience": 10,
    },
}  # fmt: skip


def from_hydra() -> L.LightningModule:
    """Instantiated, with the example inputs' shape as Hydra's own list beside it."""
    import hydra
    from omegaconf import OmegaConf

    return hydra.utils.instantiate(OmegaConf.create(HYDRA))


PROJECTS = {
    "lightning/autoencoder": Project("", AutoEncoder, images(28, colors=1)),
    "lightning/gan": Project("", GAN, images(16, colors=1)),
    "lightning/image classifier": Project("", Transferred, images()),
    "lightning/BackboneFinetuning": Project(
        "", TransferLearning, images(), callbacks=lambda: [BackboneFinetuning(1, lambda epoch: 1.5)]
    ),
    "hydra/template": Project("hydra-core", from_hydra, images(16)),
}
