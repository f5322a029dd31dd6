"""Up to the download, which is torchvision's; the files beyond it are made here in torchvision's own layout."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from lightning_taylor.recipes.torchvision_data import CIFAR10, Flowers102, ImageNet


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]:
        pixels = np.full((2, 3072), 200, dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path


def labels(data: Any) -> list[int]:
    return [data[index][1] for index in range(len(data))]


@pytest.mark.parametrize(("name", "module"), [("Flowers102", Flowers102), ("CIFAR10", CIFAR10)])
def test_the_download_goes_where_it_was_asked_to(name: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(datasets, name, lambda *args, **options: calls.append((args, options)))
    module(root="somewhere").prepare_data()
    assert [(args[0], options["download"]) for args, options in calls] == [("somewhere", True)]


def test_nothing_is_downloaded_twice(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("torchvision.datasets.flowers102.download_url", refuse)
    monkeypatch.setattr("torchvision.datasets.flowers102.download_and_extract_archive", refuse)
    Flowers102(str(flowers)).prepare_data()


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("File not found or corrupted.")])
def test_a_failed_download_says_which_files_to_get_where(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.flowers102.download_and_extract_archive", fail)
    with pytest.raises(FileNotFoundError, match=r"102flowers\.tgz, imagelabels\.mat and setid\.mat") as caught:
        Flowers102(str(tmp_path)).prepare_data()
    assert str(error) in str(caught.value)
    assert str(tmp_path / "flowers-102") in str(caught.value)


def test_reading_without_a_download_says_that_there_is_none(tmp_path: Path) -> None:
    for module in (Flowers102(str(tmp_path)), CIFAR10(str(tmp_path))):
        with pytest.raises(RuntimeError, match="Dataset not found"):
            module.test_set()


def test_flowers_keep_the_papers_splits_unless_they_are_joined(flowers: Path) -> None:
    data = Flowers102(str(flowers), size=8, num_workers=0)
    assert [labels(s) for s in (data.train_set(True), data.val_set(), data.test_set())] == [
        [0, 1],
        [2, 3, 4],
        [5, 6, 7, 8],
    ]
    joined = Flowers102(str(flowers), size=8, num_workers=0, join_val=True)
    assert [labels(s) for s in (joined.train_set(False), joined.val_set())] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]


def test_flowers_come_in_the_size_that_the_network_sees(flowers: Path) -> None:
    data = Flowers102(str(flowers), size=8, batch_size=2, num_workers=0)
    for loader in (data.train_dataloader(), data.plain_train_dataloader(), data.test_dataloader()):
        image, _ = next(iter(loader))
        assert image.shape == (2, 3, 8, 8)
        assert image.dtype == torch.float32
    assert data.num_classes == 102


def test_cifar_trains_on_five_files_and_is_tested_on_the_sixth(cifar: Path) -> None:
    data = CIFAR10(str(cifar), num_workers=0)
    assert labels(data.train_set(augment=False)) == [3, 9] * 5
    assert labels(data.val_set()) == labels(data.test_set()) == [3, 9]
    assert data.num_classes == 10


def test_cifar_is_padded_for_training_only(cifar: Path) -> None:
    data = CIFAR10(str(cifar), num_workers=0)
    augmented = torch.stack([data.train_set(augment=True)[i % 10][0] for i in range(30)])
    plain = torch.stack([data.train_set(augment=False)[i][0] for i in range(10)])
    assert augmented.shape[1:] == plain.shape[1:] == (3, 32, 32)
    assert len(plain.unique()) == 3
    assert len(augmented.unique()) == 6


def test_imagenet_is_read_as_torchvision_unpacked_it(imagenet: Path) -> None:
    data = ImageNet(str(imagenet), size=8, batch_size=2, num_workers=0)
    data.prepare_data()
    assert labels(data.train_set(augment=False)) == [0, 0, 1, 1]
    assert labels(data.val_set()) == labels(data.test_set()) == [0, 1]
    image, _ = next(iter(data.train_dataloader()))
    assert (image.shape, image.dtype) == ((2, 3, 8, 8), torch.float32)
    assert data.num_classes == 1000


@pytest.mark.parametrize("made", ["meta.bin", "train", "val"])
def test_what_is_missing_of_imagenet_is_named_with_where_to_get_it(imagenet: Path, made: str) -> None:
    (imagenet / made).rename(imagenet / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"no {made} and no ILSVRC2012_.* https://image-net\.org/download"):
        ImageNet(str(imagenet)).prepare_data()


def test_the_archives_of_imagenet_are_left_to_torchvision(imagenet: Path) -> None:
    """It compares their checksums before it unpacks them."""
    (imagenet / "val").rename(imagenet / "elsewhere")
    (imagenet / "ILSVRC2012_img_val.tar").write_bytes(b"half a download")
    with pytest.raises(RuntimeError, match=r"ILSVRC2012_img_val\.tar is not present in the root directory or is corru"):
        ImageNet(str(imagenet)).prepare_data()
