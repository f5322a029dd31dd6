"""What happens to a photograph before a network sees it, as torchvision's own training does it.

Shape legend: C = 3 colours, H, W = height and width.
"""

from __future__ import annotations

import torch
from torchvision.transforms import v2

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "crop_center", "crop_randomly", "normalize"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize() -> v2.Transform:
    """Image or uint8 tensor -> float32 ``(C, H, W)`` with ImageNet's mean and standard deviation per colour."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            v2.ToPureTensor(),
        ]
    )


def crop_randomly(size: int, least: float) -> v2.Transform:
    """For training: a random part, resized to ``size``, mirrored half of the time, normalised.

    Args:
        size: pixels per side of the result.
        least: smallest share of the image's area that is taken.
    """
    crop = v2.RandomResizedCrop(size, scale=(least, 1.0), antialias=True)
    return v2.Compose([v2.ToImage(), crop, v2.RandomHorizontalFlip(), normalize()])


def crop_center(size: int, share: float = 0.875) -> v2.Transform:
    """For evaluation: the middle ``size`` pixels, which are ``share`` of the shorter side, normalised."""
    return v2.Compose([v2.ToImage(), v2.Resize(round(size / share), antialias=True), v2.CenterCrop(size), normalize()])
