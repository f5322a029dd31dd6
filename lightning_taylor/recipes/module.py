"""What all LightningModules of the recipes share: classes agreed with the data, steps, accuracies.

Shape legend: N = examples of a batch, K = classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning as L
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_taylor.recipes.data import agreed_classes

__all__ = ["Classifier"]


class Classifier(L.LightningModule, ABC):
    """Names the class of an example; a subclass says by which network, with which loss and optimizer.

    It logs ``train_loss``, ``val_loss``, ``val_acc``, ``test_loss`` and ``test_acc``. A subclass saves
    ``num_classes`` among its hyperparameters, and ends its ``__init__`` with ``_build`` if the number is given.
    """

    loss_in_bar = False
    """Whether the progress bar shows the losses of the evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes: int | None = None
        self.net: nn.Module = nn.Identity()

    @abstractmethod
    def _network(self, num_classes: int) -> nn.Module:
        """What ``forward`` calls, for so many classes."""

    @abstractmethod
    def _loss(self, logit: Tensor, label_N: Tensor, *, training: bool = False) -> Tensor:
        """The mean loss of what ``forward`` returned, in the training step or in an evaluation."""

    @abstractmethod
    def _scores(self, logit: Tensor) -> Tensor:
        """How likely each class is by what ``forward`` returned, of shape ``(N, K)``: the largest one is the answer."""

    def configure_model(self) -> None:
        """Called before the fit or evaluation; builds the network for the data module's classes, if it is not yet."""
        classes = agreed_classes(self.num_classes, self._trainer)
        if self.num_classes is None:
            self._build(classes)

    def _build(self, num_classes: int) -> None:
        self.net = self._network(num_classes)
        # A checkpoint must be able to rebuild the network without the data.
        self.num_classes = self.hparams["num_classes"] = num_classes
        counted: dict[str, Any] = {"top_k": self.hparams.get("top_k", 1), "average": "micro"}
        self.val_acc = MulticlassAccuracy(num_classes, **counted)
        self.test_acc = MulticlassAccuracy(num_classes, **counted)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean loss of a batch."""
        example, label_N = batch
        loss = self._loss(self(example), label_N, training=True)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy over the validation set."""
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy over the test set."""
        self._evaluate(batch, "test", self.test_acc)

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """The most likely class of each example, int64 of shape ``(N,)``."""
        example = batch if isinstance(batch, Tensor) else batch[0]
        return self._scores(self(example)).argmax(dim=1)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy) -> None:
        example, label_N = batch
        logit = self(example)
        accuracy(self._scores(logit), label_N)
        loss = self._loss(logit, label_N)
        self.log(f"{stage}_loss", loss, prog_bar=self.loss_in_bar, batch_size=len(label_N))
        self.log(f"{stage}_acc", accuracy, prog_bar=True, batch_size=len(label_N))
