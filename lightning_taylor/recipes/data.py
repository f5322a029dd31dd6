"""What all data modules of the recipes share: the loaders, and a plain view of the training set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["ImageData", "agreed_classes"]


class ImageData(L.LightningDataModule, ABC):
    """Labelled images; a subclass says where the training and evaluation sets come from.

    Args:
        batch_size: examples per batch, in training and in evaluation.
        num_workers: processes that load each set; 0 loads in the main process.
    """

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many classes the labels count; known after ``setup``."""

    @abstractmethod
    def train_set(self, augment: bool) -> Dataset:
        """The training examples in a fixed order, with or without augmentation."""

    @abstractmethod
    def val_set(self) -> Dataset:
        """What is evaluated during the fit."""

    @abstractmethod
    def test_set(self) -> Dataset:
        """What is evaluated after it."""

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented; an incomplete last batch is left out where there is a complete one."""
        data = self.train_set(augment=True)
        return self._loader(data, shuffle=True, drop_last=len(data) > self.batch_size)  # pyright: ignore[reportArgumentType]

    def plain_train_dataloader(self) -> DataLoader:
        """The training set as evaluation would see it: in order, not augmented; what a head is fitted on."""
        return self._loader(self.train_set(augment=False))

    def val_dataloader(self) -> DataLoader:
        """The validation set, in order."""
        return self._loader(self.val_set())

    def test_dataloader(self) -> DataLoader:
        """The test set, in order."""
        return self._loader(self.test_set())

    def predict_dataloader(self) -> DataLoader:
        """The test set, in order."""
        return self.test_dataloader()

    def _loader(self, data: Dataset, **options: Any) -> DataLoader:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


def agreed_classes(own: int | None, trainer: L.Trainer | None) -> int:
    """How many classes a network is to make: its own number, or that of the Trainer's data module.

    Raises:
        ValueError: if neither is known, or the two differ.
    """
    found = getattr(getattr(trainer, "datamodule", None), "num_classes", None)
    if own is None:
        if found is None:
            raise ValueError("num_classes is None and the data module has no num_classes: give one of them")
        return found
    if found not in (None, own):
        raise ValueError(
            f"the network makes {own} classes and the data has {found}: leave num_classes out, or give "
            f"num_classes={found}"
        )
    return own
