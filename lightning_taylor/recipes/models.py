"""Networks by name: a small one for the digits, and every classification model of torchvision.

Shape legend: N = examples, C = channels, H, W = height and width, K = classes, F = features of the head's input.
"""

from __future__ import annotations

from difflib import get_close_matches

import torchvision
from torch import Tensor, nn

__all__ = ["DigitsCNN", "create_model", "find_head", "model_names", "replace_head"]

HEADS = ("fc", "head", "heads", "classifier")
"""Where torchvision's families keep the layer that makes the logits: it is the last linear or convolution there."""

PLAIN = {
    # Auxiliary heads serve training from scratch only; without them a network returns one tensor in either mode.
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Arguments that make a family behave like the others."""


class DigitsCNN(nn.Module):
    """A small residual network for 8 x 8 digits: 21 MFLOPs, each channel of which costs about half a per cent.

    Two convolutions at full resolution, one with stride 2, a residual block, the mean over positions and a linear
    head; every convolution is followed by batch norm and ReLU.

    Args:
        num_classes: how many logits it makes.
        in_channels: channels of the images.
        width: output channels of the first convolution; the others have 2, 4, 2 and 4 times as many.

    Example:
        >>> import torch
        >>> DigitsCNN(num_classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 48) -> None:
        super().__init__()
        self.stem = _conv_bn_relu(in_channels, width)
        self.widen = _conv_bn_relu(width, 2 * width)
        self.shrink = _conv_bn_relu(2 * width, 4 * width, stride=2)
        self.block = _Residual(4 * width, 2 * width)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of shape ``(N, K)``."""
        x = self.block(self.shrink(self.widen(self.stem(image_NCHW))))
        return self.head(x.mean(dim=(2, 3)))


class _Residual(nn.Module):
    """``relu(x + conv(conv(x)))`` with ``inner`` channels in between."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_relu(channels, inner)
        self.conv2 = nn.Conv2d(inner, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn2(self.conv2(self.conv1(x))))


def _conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def model_names() -> list[str]:
    """Every name that ``create_model`` knows: ``digits_cnn`` first, then torchvision's classification models."""
    return ["digits_cnn", *torchvision.models.list_models(module=torchvision.models)]


def check_name(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: if no model has it; the message lists the nearest names.
    """
    names = model_names()
    if name not in names:
        near = get_close_matches(name, names, n=3) or ["digits_cnn", "resnet18", "squeezenet1_1"]
        raise ValueError(f"no model is called {name!r}; the nearest names are {', '.join(near)}")
    return name


def create_model(name: str, num_classes: int) -> nn.Module:
    """A network with random weights that returns one tensor of logits, in training and in evaluation.

    Args:
        name: ``"digits_cnn"`` or a classification model of torchvision. GoogLeNet and Inception come without their
            auxiliary heads.
        num_classes: how many logits.

    Raises:
        ValueError: for an unknown name; the message lists the nearest ones.
    """
    if check_name(name) == "digits_cnn":
        return DigitsCNN(num_classes)
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **PLAIN.get(name, {}))


def find_head(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Qualified name and module of the layer that makes the logits.

    Args:
        model: a torchvision classification model, or any whose last linear layer (or convolution, as in SqueezeNet)
            is, or is in, a child called ``fc``, ``head``, ``heads`` or ``classifier``.

    Raises:
        ValueError: if it has none of these.

    Example:
        >>> find_head(torchvision.models.squeezenet1_1())[0]
        'classifier.1'
    """
    for child in HEADS:
        layers = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and name.split(".")[0] == child
        ]
        if layers:
            return layers[-1]
    raise ValueError(f"{type(model).__name__} has no head: no linear layer or convolution in {', '.join(HEADS)}")


def replace_head(model: nn.Module, num_classes: int) -> None:
    """Put a new, randomly initialised head with ``num_classes`` outputs in place of the model's own."""
    name, head = find_head(model)
    bias = head.bias is not None
    like = {"bias": bias, "device": head.weight.device, "dtype": head.weight.dtype}
    if isinstance(head, nn.Linear):
        new: nn.Module = nn.Linear(head.in_features, num_classes, **like)
    else:
        new = nn.Conv2d(head.in_channels, num_classes, kernel_size=1, **like)
    model.set_submodule(name, new)
