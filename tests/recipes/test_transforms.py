from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_taylor.recipes.transforms import IMAGENET_MEAN, IMAGENET_STD, crop_center, crop_randomly, normalize


def picture(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_normalising_is_the_formula_per_colour(as_tensor: bool) -> None:
    image = picture()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = (pixels / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    found = normalize()(pixels if as_tensor else image)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [8, 24, 64])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (9, 90)])
def test_both_crops_have_the_size_that_was_asked_for(size: int, shape: tuple[int, int]) -> None:
    for transform in (crop_center(size), crop_randomly(size, 0.35)):
        found = transform(picture(*shape))
        assert type(found) is torch.Tensor
        assert found.dtype == torch.float32
        assert found.shape == (3, size, size)


def test_the_middle_crop_never_changes() -> None:
    assert torch.equal(crop_center(16)(picture()), crop_center(16)(picture()))


def test_the_middle_of_the_picture_is_in_the_middle_of_the_crop() -> None:
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (28, 28, 36, 36))
    bright = crop_center(56)(image)[0] > 0
    rows, columns = bright.nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (24, 31, 24, 31)


def test_a_random_crop_is_moved_and_mirrored() -> None:
    image = Image.new("RGB", (32, 32))
    image.paste((255, 0, 0), (0, 0, 16, 32))
    crop = crop_randomly(32, 1.0)
    left_is_red = {bool(crop(image)[0, :, :8].mean() > 0) for _ in range(32)}
    assert left_is_red == {True, False}
