from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_taylor.recipes.folder import ImageFolder

from .conftest import MakeFolder

CLASSES = ("iris", "rose", "tulip")


def prepared(root: Path, **options: Any) -> ImageFolder:
    data = ImageFolder(str(root), size=8, num_workers=0, **options)
    data.setup("fit")
    return data


def test_classes_are_the_folders_of_the_training_split(make_folder: MakeFolder) -> None:
    data = prepared(make_folder({"train": CLASSES, "val": CLASSES}))
    assert data.num_classes == 3
    image, label = next(iter(data.val_dataloader()))
    assert image.shape == (6, 3, 8, 8)
    assert image.dtype == torch.float32
    assert label.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("only", ["val", "test"])
def test_one_evaluation_split_serves_as_both(make_folder: MakeFolder, only: str) -> None:
    data = prepared(make_folder({"train": CLASSES, only: CLASSES}))
    assert len(data.val_set()) == len(data.test_set()) == 6  # pyright: ignore[reportArgumentType]


def test_two_evaluation_splits_keep_their_own_roles(make_folder: MakeFolder) -> None:
    root = make_folder({"train": CLASSES, "val": CLASSES, "test": CLASSES})
    (root / "test" / "rose" / "0.png").unlink()
    data = prepared(root)
    assert (len(data.val_set()), len(data.test_set())) == (6, 5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("splits", [(), ("train",), ("val", "test")], ids=["nothing", "no val", "no train"])
def test_a_missing_split_is_named_with_what_is_expected_where(make_folder: MakeFolder, splits: tuple[str]) -> None:
    root = make_folder(dict.fromkeys(splits, CLASSES))
    missing = root / ("val" if "train" in splits else "train")
    with pytest.raises(FileNotFoundError, match=r"expects .*/train/<class>/ and .*/val/<class>/") as caught:
        prepared(root)
    assert f"no folder {missing}" in str(caught.value)


def test_splits_with_other_classes_are_refused_by_the_classes_names(make_folder: MakeFolder) -> None:
    root = make_folder({"train": CLASSES, "val": CLASSES, "test": ("iris", "rose", "lily")})
    with pytest.raises(ValueError, match="test and the training split differ in the classes lily, tulip"):
        prepared(root)


def test_a_class_without_an_image_is_refused_by_its_name(make_folder: MakeFolder) -> None:
    root = make_folder({"train": CLASSES, "val": CLASSES})
    shutil.rmtree(root / "train" / "rose")
    (root / "train" / "rose").mkdir()
    with pytest.raises(FileNotFoundError, match="rose"):
        prepared(root).train_dataloader()


@pytest.mark.parametrize("cache", [False, True])
def test_a_cache_gives_the_same_pixels_and_reads_no_file_twice(make_folder: MakeFolder, cache: bool) -> None:
    root = make_folder({"train": CLASSES, "val": CLASSES})
    data = prepared(root, cache=cache)
    loader = data.val_dataloader()
    first = next(iter(loader))[0]
    for file in root.rglob("val/*/*.png"):
        shutil.copyfile(next(root.glob("train/tulip/1.png")), file)
    assert torch.equal(next(iter(loader))[0], first) is cache


def test_only_training_is_augmented(make_folder: MakeFolder) -> None:
    root = make_folder({"train": CLASSES, "val": CLASSES})
    for file in root.rglob("*.png"):
        Image.effect_noise((40, 30), 90).convert("RGB").save(file)
    data = prepared(root)
    plain, augmented = data.train_set(augment=False), data.train_set(augment=True)
    assert torch.equal(plain[0][0], plain[0][0])
    assert not torch.equal(augmented[0][0], augmented[0][0])
