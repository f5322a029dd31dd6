"""Data sets that torchvision downloads: the paper's flowers, and CIFAR-10."""

from __future__ import annotations

from torch.utils.data import ConcatDataset, Dataset
from torchvision import datasets
from torchvision.transforms import v2

from lightning_taylor.recipes.data import ImageData
from lightning_taylor.recipes.transforms import crop_center, crop_randomly, normalize

__all__ = ["CIFAR10", "Flowers102"]


class Flowers102(ImageData):
    """The Oxford flowers of 102 kinds: 1,020 to train, 1,020 to validate, 6,149 to test; downloaded once (345 MB).

    Args:
        root: where the download goes.
        size: pixels per side that the network sees.
        batch_size: examples per batch.
        num_workers: processes that load each split.
        join_val: train on the validation images too and validate on the test images, as the paper does.
        least_crop: smallest share of a training image's area that is taken.
    """

    def __init__(
        self,
        root: str = "data",
        size: int = 224,
        batch_size: int = 32,
        num_workers: int = 2,
        join_val: bool = False,
        least_crop: float = 0.35,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.root = root
        self.size = size
        self.join_val = join_val
        self.least_crop = least_crop

    @property
    def num_classes(self) -> int:
        """102."""
        return 102

    def prepare_data(self) -> None:
        """Download, unless it is there; one download holds all splits."""
        datasets.Flowers102(self.root, split="train", download=True)

    def train_set(self, augment: bool) -> Dataset:
        """The training images, and the validation images if they are joined."""
        transform = crop_randomly(self.size, self.least_crop) if augment else crop_center(self.size)
        splits = ("train", "val") if self.join_val else ("train",)
        return ConcatDataset([datasets.Flowers102(self.root, split, transform) for split in splits])

    def val_set(self) -> Dataset:
        """The validation images, or the test images if those are in training."""
        return self.test_set() if self.join_val else datasets.Flowers102(self.root, "val", crop_center(self.size))

    def test_set(self) -> Dataset:
        """The test images."""
        return datasets.Flowers102(self.root, "test", crop_center(self.size))


class CIFAR10(ImageData):
    """60,000 photographs of 32 x 32 pixels in ten classes, 10,000 of them to test; downloaded once (170 MB).

    The test images are also the validation set: select nothing by them if you report them. Training images are
    padded by 4 pixels, cropped at random and mirrored; all are normalised by ImageNet's mean and standard deviation.

    Args:
        root: where the download goes.
        batch_size: examples per batch.
        num_workers: processes that load each split.
    """

    def __init__(self, root: str = "data", batch_size: int = 128, num_workers: int = 2) -> None:
        super().__init__(batch_size, num_workers)
        self.root = root

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    def prepare_data(self) -> None:
        """Download, unless it is there; one download holds both splits."""
        datasets.CIFAR10(self.root, download=True)

    def train_set(self, augment: bool) -> Dataset:
        """The 50,000 training images."""
        steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()] if augment else []
        return datasets.CIFAR10(self.root, train=True, transform=v2.Compose([*steps, normalize()]))

    def val_set(self) -> Dataset:
        """The 10,000 test images."""
        return self.test_set()

    def test_set(self) -> Dataset:
        """The 10,000 test images."""
        return datasets.CIFAR10(self.root, train=False, transform=normalize())
