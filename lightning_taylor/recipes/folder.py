"""Images in folders: one folder per split, in it one per class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_taylor.recipes.data import ImageData
from lightning_taylor.recipes.transforms import crop_center, crop_randomly

__all__ = ["ImageFolder", "SplitFolders"]


class SplitFolders(ImageData, ABC):
    """Splits that are folders with a folder for each class: ``train``, and ``val`` or ``test``, or both.

    Args:
        root: the folder with the splits.
        expected: what is expected where, for the message if it is not there.
        batch_size: examples per batch.
        num_workers: processes that load each split.
    """

    def __init__(self, root: str, expected: str, batch_size: int, num_workers: int) -> None:
        super().__init__(batch_size, num_workers)
        self.root = Path(root)
        self._expected = expected
        self._classes: list[str] = []

    @abstractmethod
    def read(self, split: Path, augment: bool) -> Dataset:
        """The examples of one split's folder."""

    @property
    def num_classes(self) -> int:
        """How many class folders the training split has; known after ``setup``."""
        return len(self._classes)

    def setup(self, stage: str) -> None:
        """Look for the splits and compare their classes."""
        splits = [self._split(*names) for names in (("train",), ("val", "test"), ("test", "val"))]
        self._classes = _shared_classes(splits[0], splits[1:])

    def train_set(self, augment: bool) -> Dataset:
        """``train``."""
        return self.read(self._split("train"), augment)

    def val_set(self) -> Dataset:
        """``val``, or ``test`` if there is no ``val``."""
        return self.read(self._split("val", "test"), augment=False)

    def test_set(self) -> Dataset:
        """``test``, or ``val`` if there is no ``test``."""
        return self.read(self._split("test", "val"), augment=False)

    def _split(self, *names: str) -> Path:
        return _first_folder(self.root, names, self._expected)


class ImageFolder(SplitFolders):
    """Your own images: ``<root>/train/<class>/`` and ``<root>/val/<class>/``, or ``test`` in place of ``val``.

    If only one of ``val`` and ``test`` is there, it serves as both. Training images are cropped at random and
    mirrored; the others are cropped in the middle. All are normalised by ImageNet's mean and standard deviation.

    Args:
        root: the folder with the splits.
        size: pixels per side that the network sees.
        batch_size: examples per batch.
        num_workers: processes that load each split.
        cache: keep every decoded image in memory. Worth it where the set is small and decoding is the bottleneck;
            each worker keeps its own.
        least_crop: smallest share of a training image's area that is taken.

    Raises:
        FileNotFoundError: in ``setup``, if a split is missing; the message says what is expected where.
        ValueError: in ``setup``, if the splits do not have the same classes.
    """

    def __init__(
        self,
        root: str,
        size: int = 224,
        batch_size: int = 32,
        num_workers: int = 2,
        cache: bool = False,
        least_crop: float = 0.35,
    ) -> None:
        expected = f"ImageFolder expects {Path(root)}/train/<class>/ and {Path(root)}/val/<class>/ (or test)"
        super().__init__(root, expected, batch_size, num_workers)
        self.size = size
        self.least_crop = least_crop
        self._load = _Loader(cache)

    def read(self, split: Path, augment: bool) -> Dataset:
        """The images of one split's folder."""
        transform = crop_randomly(self.size, self.least_crop) if augment else crop_center(self.size)
        return datasets.ImageFolder(split, transform, loader=self._load)


def _first_folder(root: Path, names: Sequence[str], expected: str) -> Path:
    """The first of the named folders that exists under ``root``.

    Raises:
        FileNotFoundError: if there is none, with what is ``expected``.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"no folder {root / names[0]}: {expected}; the root is data.root")


def _shared_classes(train: Path, others: Iterable[Path]) -> list[str]:
    """The class folders of the training split, in the order of their labels.

    Raises:
        ValueError: if one of the ``others`` does not have the same.
    """
    classes = datasets.folder.find_classes(train)[0]
    for split in others:
        if differing := sorted(set(datasets.folder.find_classes(split)[0]) ^ set(classes)):
            raise ValueError(f"{split} and the training split differ in the classes {', '.join(differing)}")
    return classes


class _Loader:
    """Decodes an image file to a uint8 tensor ``(3, H, W)``, and remembers it if asked to."""

    def __init__(self, cache: bool) -> None:
        self.cache = cache
        self.kept: dict[str, Tensor] = {}

    def __call__(self, path: str) -> Tensor:
        if path in self.kept:
            return self.kept[path]
        image = pil_to_tensor(datasets.folder.default_loader(path))
        if self.cache:
            self.kept[path] = image
        return image
