"""A model by its name: one of torchvision, or the small one for the digits, with random weights."""

from __future__ import annotations

from typing import Any, NoReturn

import torchvision
from torch import nn

from lightning_taylor.cli.exit import fail, nearest
from lightning_taylor.cli.shipped_configs import shipped_configs
from lightning_taylor.recipes.models import create_model, model_names

__all__ = ["build", "check_name", "torchvision_names", "usual_shape"]

FRAMES = 16
"""Of a video, at a rate at which the video models of torchvision were trained."""

DIGITS_CNN = "digits_cnn"


def torchvision_names() -> list[str]:
    """Return the names of torchvision's models."""
    return torchvision.models.list_models()


def check_name(name: str) -> None:
    """End the command if no model is called so, and say what was meant."""
    if name != DIGITS_CNN and name not in torchvision_names():
        _unknown(name)


def build(name: str) -> nn.Module:
    """Build a model with random weights; a classifier without the heads that are there for its training only."""
    if name in model_names():
        return create_model(name, num_classes=10 if name == DIGITS_CNN else 1000)
    builder = torchvision.models.get_model_builder(name)
    # A segmentation or detection net would fetch weights for its backbone.
    backbone = {"weights_backbone": None} if "weights_backbone" in builder.__annotations__ else {}
    return torchvision.models.get_model(name, weights=None, **backbone)


def usual_shape(name: str) -> list[int]:
    """Return the shape of one example as the model's published weights are evaluated on, without fetching them."""
    if name == DIGITS_CNN:
        return [1, 1, 8, 8]
    presets: Any = next(iter(torchvision.models.get_model_weights(name))).transforms
    preset = presets()
    side = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None) or [224]
    side = list(side) * (2 if len(side) == 1 else 1)
    return [1, 3, *([FRAMES] if "video" in type(preset).__name__.lower() else []), *side]


def _unknown(name: str) -> NoReturn:
    if name in shipped_configs() or name.endswith((".yaml", ".yml")):
        fail(2, f"{name} is a configuration: write --config {name}")
    if name.endswith((".ckpt", ".pt", ".pth")) or "/" in name:
        fail(2, f"no file {name!r}")
    fail(2, f"no model of torchvision is called {name!r}{nearest(name, [DIGITS_CNN, *torchvision_names()])}")
