from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import datasets

# Before any test: its import sets an environment variable, which a test must not.
pytest.importorskip("sklearn", reason="the recipes need the extra of that name")

from scipy.io import savemat

MakeFolder = Callable[[Mapping[str, Sequence[str]]], Path]
SPLITS = {"trnid": [1, 2], "valid": [3, 4, 5], "tstid": [6, 7, 8, 9]}


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes ``{split: classes}`` as two small images a class, whose colour tells the class."""

    def make(splits: Mapping[str, Sequence[str]]) -> Path:
        for split, classes in splits.items():
            for colour, name in enumerate(classes):
                folder = tmp_path / split / name
                folder.mkdir(parents=True)
                for number in range(2):
                    Image.new("RGB", (20, 16), (60 * colour, 0, 100 * number)).save(folder / f"{number}.png")
        return tmp_path

    return make


@pytest.fixture
def make_birds(tmp_path: Path) -> Callable[..., Path]:
    """Writes CUB-200-2011's own lists and images: of every class two to train and one to test."""

    def make(classes: Sequence[str] = ("001.Auk", "002.Jay", "003.Tern"), edge: int = 20) -> Path:
        lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
        for label, name in enumerate(classes):
            (tmp_path / "images" / name).mkdir(parents=True)
            for number in range(3):
                file = f"{name}/bird {number}.jpg"
                Image.new("RGB", (edge + 4, edge), (60 * label, 0, 100 * number)).save(tmp_path / "images" / file)
                key = len(lists["images"]) + 1
                lists["images"].append(f"{key} {file}")
                lists["image_class_labels"].append(f"{key} {label + 1}")
                lists["train_test_split"].append(f"{key} {int(number < 2)}")
        for name, lines in lists.items():
            (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
        return tmp_path

    return make


@pytest.fixture
def make_clips(tmp_path: Path) -> Callable[..., Path]:
    """Writes videos as frames: frame ``i`` has the grey value ``i``."""

    def make(splits: Mapping[str, Sequence[str]], frames: int = 20, edge: int = 16, videos: int = 2) -> Path:
        for split, classes in splits.items():
            for name in classes:
                for video in range(videos):
                    folder = tmp_path / split / name / f"video{video}"
                    folder.mkdir(parents=True)
                    for number in range(frames):
                        Image.new("L", (edge + 2, edge), number).save(folder / f"{number}.png")
        return tmp_path

    return make


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine flowers in torchvision's own layout, which it would not take for its download."""
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 10):
        Image.new("RGB", (24, 20), (20 * number, 0, 0)).save(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "setid.mat", {name: [numbers] for name, numbers in SPLITS.items()})
    savemat(folder / "imagelabels.mat", {"labels": [list(range(1, 10))]})
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    return tmp_path


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Two classes of ImageNet as torchvision unpacks the archives: two images each to train, one to validate."""
    names = {"n01440764": ("tench",), "n01443537": ("goldfish",)}
    torch.save((names, []), tmp_path / "meta.bin")
    for split, images in (("train", 2), ("val", 1)):
        for colour, name in enumerate(names):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(images):
                file = tmp_path / split / name / f"{number}.JPEG"
                Image.new("RGB", (24, 20), (200 * colour, 0, 100 * number)).save(file)
    return tmp_path
