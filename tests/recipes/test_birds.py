from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_taylor.recipes.birds import Birds200

MakeBirds = Callable[..., Path]


def prepared(root: Path) -> Birds200:
    data = Birds200(str(root), size=8, batch_size=2, num_workers=0)
    data.setup("fit")
    return data


def labels(data: Any) -> list[int]:
    return [data[index][1] for index in range(len(data))]


def test_birds_are_split_by_the_archives_own_list(make_birds: MakeBirds) -> None:
    data = prepared(make_birds())
    assert data.num_classes == 3
    assert labels(data.train_set(augment=False)) == [0, 0, 1, 1, 2, 2]
    assert labels(data.val_set()) == labels(data.test_set()) == [0, 1, 2]


def test_each_bird_has_the_class_of_its_file(make_birds: MakeBirds) -> None:
    """The red of an image tells its class."""
    data = prepared(make_birds())
    red = [float(image[0].mean()) for image, _ in data.test_set()]  # pyright: ignore[reportGeneralTypeIssues]
    assert red == sorted(red)
    assert len(set(red)) == 3


def test_birds_come_in_the_size_that_the_network_sees(make_birds: MakeBirds) -> None:
    data = prepared(make_birds())
    for loader in (data.train_dataloader(), data.plain_train_dataloader(), data.test_dataloader()):
        image, label = next(iter(loader))
        assert image.shape == (2, 3, 8, 8)
        assert (image.dtype, label.dtype) == (torch.float32, torch.int64)


def test_the_order_of_the_lists_does_not_matter(make_birds: MakeBirds) -> None:
    root = make_birds()
    lines = (root / "image_class_labels.txt").read_text().splitlines()
    (root / "image_class_labels.txt").write_text("\n".join(reversed(lines)))
    assert labels(prepared(root).test_set()) == [0, 1, 2]


@pytest.mark.parametrize("name", ["images", "image_class_labels", "train_test_split"])
def test_a_missing_list_is_named_with_where_the_archive_is_to_be_had(make_birds: MakeBirds, name: str) -> None:
    root = make_birds()
    (root / f"{name}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"CUB_200_2011\.tgz .* https://data\.caltech\.edu") as caught:
        prepared(root)
    assert f"no file {root / name}.txt" in str(caught.value)


def test_an_image_without_a_class_is_named(make_birds: MakeBirds) -> None:
    root = make_birds()
    with (root / "images.txt").open("a") as file:
        file.write("77 003.Tern/bird 9.jpg\n")
    with pytest.raises(ValueError, match=r"image_class_labels\.txt and .*images\.txt differ in image 77"):
        prepared(root)


def test_a_line_of_another_form_is_shown(make_birds: MakeBirds) -> None:
    root = make_birds()
    (root / "images.txt").write_text("lonely\n")
    with pytest.raises(ValueError, match=r"images\.txt: a line is \['lonely'\]"):
        prepared(root)
