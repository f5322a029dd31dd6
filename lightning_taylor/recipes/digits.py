"""The digits that come with scikit-learn: real data for the main job, without a download.

Shape legend: N = examples, C = channels, H, W = height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, TensorDataset

from lightning_taylor.recipes.data import ImageData

__all__ = ["Digits"]


class Digits(ImageData):
    """1,797 handwritten digits of 8 x 8 pixels, in a fixed stratified split: 1,347 to train, 450 to test.

    The test digits are also the validation set: nothing is selected by them (no early stopping, no best
    checkpoint), so the accuracy after the last epoch is a test accuracy.

    Args:
        batch_size: examples per batch.
        size: pixels per side; anything but 8 is interpolated, for networks that want larger images.
        channels: 1, or 3 equal ones for networks made for colour.
        num_workers: processes that load; the data lies in memory, so none are needed.

    Raises:
        ModuleNotFoundError: if scikit-learn is missing; the message says what to install.

    Example:
        >>> digits = Digits(batch_size=32)
        >>> digits.setup("fit")
        >>> next(iter(digits.val_dataloader()))[0].shape
        torch.Size([32, 1, 8, 8])
    """

    def __init__(self, batch_size: int = 64, size: int = 8, channels: int = 1, num_workers: int = 0) -> None:
        super().__init__(batch_size, num_workers)
        self.size = size
        self.channels = channels
        self._train: Dataset
        self._test: Dataset

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    def setup(self, stage: str) -> None:
        """Read and split the digits."""
        train, test = _split()
        self._train, self._test = self._prepare(*train), self._prepare(*test)

    def train_set(self, augment: bool) -> Dataset:
        """The 1,347 training digits; they are centred and scaled alike, and augmentation would only blur that."""
        return self._train

    def val_set(self) -> Dataset:
        """The 450 test digits: no choice depends on them."""
        return self.test_set()

    def test_set(self) -> Dataset:
        """The 450 test digits."""
        return self._test

    def _prepare(self, image_NHW: Tensor, label_N: Tensor) -> Dataset:
        image_NCHW = image_NHW.unsqueeze(1)
        if self.size != image_NCHW.shape[-1]:
            image_NCHW = interpolate(image_NCHW, (self.size, self.size), mode="bilinear", align_corners=False)
        return TensorDataset(image_NCHW.expand(-1, self.channels, -1, -1), label_N)


def _split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images in [0, 1], float32 ``(N, 8, 8)``, and int64 labels: three quarters of the digits, and the rest."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn: pip install 'lightning-taylor[cli,recipes]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    image_NHW = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 8, 8) / 16
    label_N = torch.as_tensor(labels, dtype=torch.int64)
    train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    return (image_NHW[train], label_N[train]), (image_NHW[test], label_N[test])
