"""Caltech-UCSD Birds-200-2011, as its archive unpacks."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from lightning_taylor.recipes.data import ImageData
from lightning_taylor.recipes.transforms import crop_center, crop_randomly

__all__ = ["Birds", "Birds200"]

LISTS = {"images.txt": "files", "image_class_labels.txt": "classes", "train_test_split.txt": "splits"}
"""Each has a line ``<number of the image> <value>`` for every image."""


class Birds200(ImageData):
    """Birds of 200 kinds in whole photographs: 5,994 to train, 5,794 to test, by the archive's own lists.

    The test images are also the validation set, as in the paper: select nothing by them if you report them. The
    bounding boxes are not used.

    Args:
        root: the folder ``CUB_200_2011`` of the archive, with ``images.txt`` and ``images/`` in it.
        size: pixels per side that the network sees.
        batch_size: examples per batch.
        num_workers: processes that load each split.
        least_crop: smallest share of a training image's area that is taken.

    Raises:
        FileNotFoundError: in ``setup``, if a list is missing; the message says where the archive is to be had.
        ValueError: in ``setup``, for a list that lacks an image or has a line of another form.
    """

    def __init__(
        self, root: str, size: int = 224, batch_size: int = 32, num_workers: int = 2, least_crop: float = 0.35
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.root = Path(root)
        self.size = size
        self.least_crop = least_crop
        self._images: dict[str, list[tuple[Path, int]]] = {}

    @property
    def num_classes(self) -> int:
        """The highest class that the lists name, 200 in the whole archive; known after ``setup``."""
        return 1 + max(label for images in self._images.values() for _, label in images)

    def setup(self, stage: str) -> None:
        """Read the lists."""
        self._images = _read_lists(self.root)

    def train_set(self, augment: bool) -> Dataset:
        """The training images."""
        transform = crop_randomly(self.size, self.least_crop) if augment else crop_center(self.size)
        return Birds(self._images["train"], transform)

    def val_set(self) -> Dataset:
        """The test images."""
        return self.test_set()

    def test_set(self) -> Dataset:
        """The test images."""
        return Birds(self._images["test"], crop_center(self.size))


class Birds(Dataset):
    """Image files with their labels.

    Args:
        images: paths and labels from 0.
        transform: from a PIL image to what the network sees.
    """

    def __init__(self, images: list[tuple[Path, int]], transform: v2.Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        """How many images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its label."""
        path, label = self.images[index]
        return self.transform(default_loader(path)), label


def _read_lists(root: Path) -> dict[str, list[tuple[Path, int]]]:
    """``"train"`` and ``"test"`` -> path and label of every image, in the order of ``images.txt``."""
    files, classes, splits = (_read_list(root / name) for name in LISTS)
    for name, values in zip(LISTS, (files, classes, splits), strict=True):
        if missing := set(files) ^ set(values):
            raise ValueError(f"{root / name} and {root / 'images.txt'} differ in image {min(missing)}")
    found: dict[str, list[tuple[Path, int]]] = {"train": [], "test": []}
    for number, file in files.items():
        found["train" if splits[number] == "1" else "test"].append((root / "images" / file, int(classes[number]) - 1))
    return found


def _read_list(path: Path) -> dict[str, str]:
    """The number of each image -> what the list says of it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}: Birds200 expects the unpacked archive CUB_200_2011.tgz (1.1 GB) of "
            f"https://data.caltech.edu/records/20098, with {', '.join(LISTS)} and images/; the root is data.root"
        )
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if wrong := [line for line in lines if len(line) != 2]:
        raise ValueError(f"{path}: a line is {wrong[0]!r} where the number of an image and a value are expected")
    return {number: value.strip() for number, value in lines}
