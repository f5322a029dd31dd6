"""A LightningModule for the classification of videos by R3DCNN: its loss, its weights, its optimizer.

Shape legend: N = videos, T = clips of a video, C = channels, F = frames of a clip, H, W = height and width,
K = classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss

from lightning_taylor.recipes.module import Classifier
from lightning_taylor.recipes.r3dcnn import R3DCNN, load_c3d
from lightning_taylor.recipes.weights import read_state_dict

__all__ = ["ClipClassifier"]


class ClipClassifier(Classifier):
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

    loss_in_bar = True

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
        if num_classes is not None:
            self._build(num_classes)

    def _network(self, num_classes: int) -> nn.Module:
        names = ("in_channels", "width", "features", "hidden", "frames", "size", "dropout")
        blank = int(self.hparams["loss"] == "ctc")
        net = R3DCNN(num_classes + blank, **{name: self.hparams[name] for name in names})
        if self.weights is not None:
            load_c3d(net, read_state_dict(self.weights))
        return net

    def forward(self, video_NTCFHW: Tensor) -> Tensor:
        """Logits of every clip, of shape ``(N, T, K)``, with one class more under CTC."""
        return self.net(video_NTCFHW)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Stochastic gradient descent."""
        rate = {name: self.hparams[name] for name in ("lr", "momentum", "weight_decay")}
        return torch.optim.SGD(self.parameters(), **rate)

    def _loss(self, logit: Tensor, label_N: Tensor, *, training: bool = False) -> Tensor:
        videos, clips = logit.shape[:2]
        if self.hparams["loss"] == "cross_entropy":
            return cross_entropy(logit.flatten(0, 1), label_N.repeat_interleave(clips))
        # One label a video: any clip after which it is known may say so, the others say nothing.
        lengths = (torch.full((videos,), clips), torch.ones(videos, dtype=torch.int64))
        log_TNK = logit.log_softmax(dim=2).transpose(0, 1)
        return ctc_loss(log_TNK, label_N[:, None], *lengths, blank=logit.shape[2] - 1)

    def _scores(self, logit: Tensor) -> Tensor:
        """Mean over the clips of the probabilities that each gives, without CTC's blank."""
        return logit.softmax(dim=2).mean(dim=1)[:, : self.num_classes]
