"""A LightningModule for image classification: a network by name, its weights, its optimizer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_taylor.recipes.models import check_name, create_model, find_head, replace_head
from lightning_taylor.recipes.module import Classifier
from lightning_taylor.recipes.probe import fit_head
from lightning_taylor.recipes.weights import pretrained_model

__all__ = ["ImageClassifier", "cosine_with_warmup", "drop_with_warmup"]


class ImageClassifier(Classifier):
    """Trains a network of torchvision, or the small one for the digits, to name the class of an image.

    With ``weights`` for another number of classes the head is replaced, and fitted on frozen features before the
    first step. It logs ``train_loss``, ``val_loss``, ``val_acc``, ``test_loss`` and ``test_acc``.

    Args:
        model: ``"digits_cnn"``, or a classification model of torchvision by name.
        weights: None for random ones; the name of a torchvision weights enum such as ``"IMAGENET1K_V1"`` or
            ``"DEFAULT"``; or the path of a state-dict file. A checkpoint does not remember them: it has its own.
        num_classes: how many; None takes the data module's number.
        optimizer: stochastic gradient descent, or AdamW.
        lr: the highest learning rate.
        momentum: of SGD; AdamW keeps its own.
        weight_decay: of either optimizer.
        schedule: how the learning rate goes on after the warm-up: to zero along half a cosine over the whole fit,
            not at all, or down to a tenth at ``drop_step``.
        warmup_steps: optimizer steps over which the learning rate rises linearly.
        drop_step: optimizer steps before ``schedule="drop"`` divides the learning rate by ten.
        label_smoothing: share of the training label's probability that is spread over all classes.
        top_k: an image counts as right in the accuracies if its class is among so many that are the most likely.

    Raises:
        ValueError: for an unknown model or setting, or classes that are not the data module's.
        FileNotFoundError: if ``weights`` names neither an enum nor a file.

    Example:
        >>> ImageClassifier("resnet18", num_classes=5).net.fc.out_features
        5
    """

    def __init__(
        self,
        model: str = "digits_cnn",
        weights: str | None = None,
        num_classes: int | None = None,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: Literal["cosine", "constant", "drop"] = "cosine",
        warmup_steps: int = 0,
        drop_step: int = 0,
        label_smoothing: float = 0.0,
        top_k: int = 1,
    ) -> None:
        super().__init__()
        if schedule == "drop" and drop_step < 1:
            raise ValueError(f"schedule='drop' needs the step at which the rate drops, drop_step >= 1; got {drop_step}")
        self.save_hyperparameters(ignore=["weights"])
        self.model_name = check_name(model)
        self.weights = weights
        self.head_is_new = False
        if num_classes is not None:
            self._build(num_classes)

    def _network(self, num_classes: int) -> nn.Module:
        if self.weights is None:
            return create_model(self.model_name, num_classes)
        net = pretrained_model(self.model_name, self.weights)
        self.head_is_new = find_head(net)[1].weight.shape[0] != num_classes
        if self.head_is_new:
            replace_head(net, num_classes)
        return net

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint is restored, which brings a fitted head along."""
        self.head_is_new = False

    def on_fit_start(self) -> None:
        """Called before the first step; fits a new head on frozen features."""
        if not self.head_is_new:
            return
        # A loader that shuffles must not move the random numbers of the fit.
        with torch.random.fork_rng():
            fit_head(self.net, self._batches_for_head())
        # Ranks may have seen different data, and DDP compared the parameters before this.
        for parameter in find_head(self.net)[1].parameters():
            parameter.data.copy_(self.trainer.strategy.broadcast(parameter.data))
        self.head_is_new = False

    def _batches_for_head(self) -> Any:
        """The training batches, without augmentation where the data module can give them so."""
        plain = getattr(getattr(self.trainer, "datamodule", None), "plain_train_dataloader", None)
        if plain is not None:
            return plain()
        self.trainer.fit_loop.setup_data()
        return self.trainer.train_dataloader

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of shape ``(N, K)``."""
        return self.net(image_NCHW)

    def _loss(self, logit: Tensor, label_N: Tensor, *, training: bool = False) -> Tensor:
        smoothing = self.hparams["label_smoothing"] if training else 0.0
        return cross_entropy(logit, label_N, label_smoothing=smoothing)

    def _scores(self, logit: Tensor) -> Tensor:
        return logit

    def configure_optimizers(self) -> Any:
        """The optimizer, with a learning rate that changes every step unless it is constant."""
        settings = self.hparams
        rate = {"lr": settings["lr"], "weight_decay": settings["weight_decay"]}
        if settings["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), momentum=settings["momentum"], **rate)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), **rate)
        shape = partial(cosine_with_warmup, warmup=settings["warmup_steps"], total=self._fit_length())
        if settings["schedule"] == "drop":
            shape = partial(drop_with_warmup, warmup=settings["warmup_steps"], drop=settings["drop_step"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _fit_length(self) -> float:
        """Optimizer steps until the learning rate is zero: infinitely many if it never is."""
        if self.hparams["schedule"] != "cosine":
            return math.inf
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError("schedule='cosine' needs the length of the fit: give max_epochs or max_steps")
        return total


def cosine_with_warmup(step: int, warmup: int, total: float) -> float:
    r"""Factor on the learning rate: up along a line, then to zero along half a cosine.

    .. math::  f(t) = \frac{t + 1}{w} \text{ for } t < w, \qquad
               \frac{1}{2} \Bigl(1 + \cos \pi \frac{t - w}{T - w}\Bigr) \text{ after}

    Args:
        step: optimizer steps taken so far, ``t``.
        warmup: ``w``; 0 for none.
        total: ``T``; infinite for a rate that stays.

    Example:
        >>> [cosine_with_warmup(step, warmup=2, total=10) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    if math.isinf(total):
        return 1.0
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup)))) / 2


def drop_with_warmup(step: int, warmup: int, drop: int) -> float:
    """Factor on the learning rate: up along a line, then 1, and a tenth from the step ``drop`` on.

    Args:
        step: optimizer steps taken so far.
        warmup: steps of the line; 0 for none.
        drop: steps before the rate falls.

    Example:
        >>> [drop_with_warmup(step, warmup=2, drop=3) for step in (0, 1, 2, 3)]
        [0.5, 1.0, 1.0, 0.1]
    """
    return cosine_with_warmup(step, warmup, math.inf) * (0.1 if step >= drop else 1.0)
