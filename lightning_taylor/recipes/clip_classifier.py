"""A LightningModule for the classification of videos by R3DCNN: its loss, its weights, its optimizer.

Shape legend: N = videos, T = clips of a video, C = channels, F = frames of a clip, H, W = height and width,
K = classes.
"""

from __future__ import annotations

from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss
from torchmetrics.classification import MulticlassAccuracy

from lightning_taylor.recipes.data import agreed_classes
from lightning_taylor.recipes.r3dcnn import R3DCNN, load_c3d
from lightning_taylor.recipes.weights import read_state_dict

__all__ = ["ClipClassifier"]


class ClipClassifier(L.LightningModule):
    """Trains an R3DCNN to name the class of a video, by stochastic gradient descent with a constant rate.

    A video's class is the likeliest in the mean of its clips' probabilities. It logs ``train_loss``, ``val_loss``,
    ``val_acc``, ``test_loss`` and ``test_acc``.

    Args:
        weights: the path of a state-dict file with C3D's weights, as ``load_c3d`` takes them; None for random ones. A
            checkpoint does not remember it: it has its own.
        num_classes: how many; None takes the data module's number.
        loss: ``"cross_entropy"`` of every clip with the class of its video, or ``"ctc"`` of the sequence of clips,
            for which the net has one class more, the last: nothing yet.
        in_channels: as for ``R3DCNN``, like the next six.
        width: of the first convolution.
        features: of the linear layer.
        hidden: of the recurrent layer.
        frames: of a clip.
        size: pixels per side.
        dropout: after the linear layer.
        lr: the learning rate.
        momentum: of SGD.
        weight_decay: of SGD.

    Raises:
        ValueError: for a shape that cannot be pooled, weights of another network, or classes that are not the data
            module's.

    Example:
        >>> ClipClassifier(num_classes=25, width=4, features=16).net.head.out_features
        25
    """

    def __init__(
        self,
        weights: str | None = None,
        num_classes: int | None = None,
        loss: Literal["cross_entropy", "ctc"] = "cross_entropy",
        in_channels: int = 1,
        width: int = 64,
        features: int = 4096,
        hidden: int = 256,
        frames: int = 8,
        size: int = 112,
        dropout: float = 0.5,
        lr: float = 3e-4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["weights"])
        self.weights = weights
        self.num_classes: int | None = None
        self.net: nn.Module = nn.Identity()
        if num_classes is not None:
            self._build(num_classes)

    def configure_model(self) -> None:
        """Called before the fit or evaluation; builds the network for the data module's classes, if it is not yet."""
        classes = agreed_classes(self.num_classes, self._trainer)
        if self.num_classes is None:
            self._build(classes)

    def _build(self, num_classes: int) -> None:
        names = ("in_channels", "width", "features", "hidden", "frames", "size", "dropout")
        blank = int(self.hparams["loss"] == "ctc")
        self.net = R3DCNN(num_classes + blank, **{name: self.hparams[name] for name in names})
        if self.weights is not None:
            load_c3d(self.net, read_state_dict(self.weights))
        # A checkpoint must be able to rebuild the network without the data.
        self.num_classes = self.hparams["num_classes"] = num_classes
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, video_NTCFHW: Tensor) -> Tensor:
        """Logits of every clip, of shape ``(N, T, K)``, with one class more under CTC."""
        return self.net(video_NTCFHW)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean loss of a batch."""
        video, label = batch
        loss = self._loss(self(video), label)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy over the validation set."""
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy over the test set."""
        self._evaluate(batch, "test", self.test_acc)

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """The likeliest class of each video, int64 of shape ``(N,)``."""
        video = batch if isinstance(batch, Tensor) else batch[0]
        return self._probabilities(self(video)).argmax(dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Stochastic gradient descent."""
        rate = {name: self.hparams[name] for name in ("lr", "momentum", "weight_decay")}
        return torch.optim.SGD(self.parameters(), **rate)

    def _loss(self, logit_NTK: Tensor, label_N: Tensor) -> Tensor:
        videos, clips = logit_NTK.shape[:2]
        if self.hparams["loss"] == "cross_entropy":
            return cross_entropy(logit_NTK.flatten(0, 1), label_N.repeat_interleave(clips))
        # One label a video: any clip after which it is known may say so, the others say nothing.
        lengths = (torch.full((videos,), clips), torch.ones(videos, dtype=torch.int64))
        log_TNK = logit_NTK.log_softmax(dim=2).transpose(0, 1)
        return ctc_loss(log_TNK, label_N[:, None], *lengths, blank=logit_NTK.shape[2] - 1)

    def _probabilities(self, logit_NTK: Tensor) -> Tensor:
        """Mean over the clips of what each says, of shape ``(N, K)``; without CTC's blank."""
        return logit_NTK.softmax(dim=2).mean(dim=1)[:, : self.num_classes]

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy) -> None:
        video, label = batch
        logit = self(video)
        accuracy(self._probabilities(logit), label)
        self.log(f"{stage}_loss", self._loss(logit, label), prog_bar=True)
        self.log(f"{stage}_acc", accuracy, prog_bar=True)
