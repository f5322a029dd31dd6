"""Data sets that torchvision reads: the paper's flowers and ImageNet, and CIFAR-10; all but ImageNet are downloaded."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import ConcatDataset, Dataset
from torchvision import datasets
from torchvision.transforms import v2

from lightning_taylor.recipes.data import ImageData
from lightning_taylor.recipes.transforms import crop_center, crop_randomly, normalize

__all__ = ["CIFAR10", "Flowers102", "ImageNet"]

ARCHIVES = {
    "meta.bin": "ILSVRC2012_devkit_t12.tar.gz",
    "train": "ILSVRC2012_img_train.tar",
    "val": "ILSVRC2012_img_val.tar",
}
"""What torchvision makes of each archive of ImageNet."""


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
        """Download, unless it is there; one download holds all splits.

        Raises:
            FileNotFoundError: if that fails; the message says which files are to be had where.
        """
        try:
            datasets.Flowers102(self.root, split="train", download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"the flowers could not be downloaded ({error}): get 102flowers.tgz, imagelabels.mat and setid.mat "
                f"from https://www.robots.ox.ac.uk/~vgg/data/flowers/102 into {Path(self.root, 'flowers-102')}; the "
                "root is data.root"
            ) from error

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


class ImageNet(ImageData):
    """ILSVRC 2012: 1,281,167 photographs of 1,000 kinds to train, 50,000 to validate.

    There is no download without an account: put the three archives into ``root``, and the first use unpacks them.
    The validation images are also the test set, as in the paper: select nothing by them if you report them.

    Args:
        root: where the archives are, or what torchvision made of them: ``meta.bin``, ``train/`` and ``val/``.
        size: pixels per side that the network sees.
        batch_size: examples per batch.
        num_workers: processes that load each split.
        least_crop: smallest share of a training image's area that is taken.

    Raises:
        FileNotFoundError: in ``prepare_data``, if neither is there; the message says what is to be had where.
    """

    def __init__(
        self, root: str, size: int = 224, batch_size: int = 32, num_workers: int = 8, least_crop: float = 0.08
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.root = root
        self.size = size
        self.least_crop = least_crop

    @property
    def num_classes(self) -> int:
        """1,000."""
        return 1000

    def prepare_data(self) -> None:
        """Unpack the archives, unless that is done."""
        for made, archive in ARCHIVES.items():
            if not (Path(self.root, made).exists() or Path(self.root, archive).is_file()):
                raise FileNotFoundError(
                    f"no {made} and no {archive} in {self.root}: get {', '.join(ARCHIVES.values())} from "
                    "https://image-net.org/download (it takes an account) and put them there; the root is data.root"
                )
        for split in ("train", "val"):
            datasets.ImageNet(self.root, split)

    def train_set(self, augment: bool) -> Dataset:
        """The training images."""
        transform = crop_randomly(self.size, self.least_crop) if augment else crop_center(self.size)
        return datasets.ImageNet(self.root, "train", transform=transform)

    def val_set(self) -> Dataset:
        """The 50,000 validation images."""
        return self.test_set()

    def test_set(self) -> Dataset:
        """The 50,000 validation images."""
        return datasets.ImageNet(self.root, "val", transform=crop_center(self.size))
