"""Does it prune my network? Every model of torchvision: right, or frozen with a reason, never wrong.

``python tests/campaigns/architectures.py [--models 'resnet*' ...] [--out FILE] [--timeout S] [--table [--write FILE]]``

Random weights, and the smallest inputs that go through: channels do not depend on them.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.video import mvit

from campaigns.measuring import Example
from campaigns.table import Zoo, main

REMARK = (
    " Every model of its registry. The `quantized_` ones are in floating point, as their builders make them by "
    "default; once quantized, they are refused, with the advice to prune first."
)
_SEGMENTERS = ("fcn", "deeplab", "lraspp")
_DETECTORS = ("rcnn", "retinanet", "ssd", "fcos")
_SIDES = {"inception_v3": 299, "maxvit_t": 224, "ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
_CLIPS = {"r3d_18": 4, "mc3_18": 4, "r2plus1d_18": 4, "s3d": 14, "swin3d": 4, "mvit": 8}
_VIT_SIDES = {"vit_b_16": 64, "vit_b_32": 64, "vit_l_16": 64, "vit_l_32": 64, "vit_h_14": 56}
_MVIT_SIDE = 64


def build(name: str, *, quantize: bool = False) -> Example:
    """A torchvision model with random weights, and arguments for its forward pass.

    The ``quantized_`` models are built as their builders build them by default: in floating point, ready to be pruned
    and then quantized.
    """
    if any(part in name for part in _DETECTORS):
        return detector(name)
    if name.startswith("mvit"):
        return small_mvit(name), (clip(name, _MVIT_SIDE),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(
            name, weights=None, **options(name), **({"quantize": True} if quantize else {})
        )
    if name.startswith("raft"):
        # Two refinements instead of twelve: the same layers once more.
        return model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128), 2)
    if name == "s3d":
        # Its last pooling spans the 7x7 positions of a clip of 224 px; it has no weights, and small clips are faster.
        model.avgpool = nn.AvgPool3d((2, 1, 1), stride=1)
    if any(name.startswith(part) for part in _CLIPS):
        return model, (clip(name, 32),)
    side = _VIT_SIDES.get(name, _SIDES.get(name.removeprefix("quantized_"), 64))
    return model, (torch.randn(1, 3, side, side),)


def options(name: str) -> dict[str, Any]:
    """What a builder needs to be told, so that it downloads nothing and takes a small image."""
    if "googlenet" in name or "inception" in name:
        return {"init_weights": False}
    if any(part in name for part in _SEGMENTERS):
        return {"weights_backbone": None}
    if name in _VIT_SIDES:
        return {"image_size": _VIT_SIDES[name]}
    return {"input_size": (224, 224)} if name == "maxvit_t" else {}


def clip(name: str, side: int) -> Tensor:
    """Random frames."""
    frames = next(n for part, n in _CLIPS.items() if name.startswith(part))
    return torch.randn(1, 3, frames, side, side)


def small_mvit(name: str) -> nn.Module:
    """An MViT for small clips; its builders leave no way to say so."""
    whole = mvit._mvit

    def small(**kwargs: Any) -> nn.Module:
        return whole(**kwargs | {"spatial_size": (_MVIT_SIDE, _MVIT_SIDE), "temporal_size": _CLIPS["mvit"]})

    with mock.patch.object(mvit, "_mvit", small):
        return torchvision.models.get_model(name, weights=None)


def detector(name: str) -> Example:
    """A detector, a list of one image, and its target, which only the training path reads.

    A few proposals instead of a thousand: each is an image for the heads, and takes their time.
    """
    side = _SIDES.get(name, 128)
    size = {} if "ssd" in name else {"min_size": side, "max_size": side}
    labels = {} if "keypoint" in name else {"num_classes": 5}
    few = {f"rpn_post_nms_top_n_{mode}": 32 for mode in ("train", "test")} if "rcnn" in name else {}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **labels, **size, **few)
    boxes = torch.tensor([[10.0, 10.0, 60.0, 60.0], [30.0, 40.0, 100.0, 120.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    if "mask" in name:
        target["masks"] = (torch.rand(2, side, side) > 0.5).to(torch.uint8)
    if "keypoint" in name:
        target["keypoints"] = torch.cat([boxes[:, None, :2] + 5 + 20 * torch.rand(2, 17, 2), torch.ones(2, 17, 1)], -1)
    return model, ([torch.rand(3, side, side)], [target])


def zoo() -> Zoo:
    """Every registered name -> how to build it, small ones first."""
    return {name: partial(build, name) for name in sorted(torchvision.models.list_models(), key=parameters)}


def parameters(name: str) -> int:
    """How many parameters torchvision says that a model has."""
    return min(weights.meta["num_params"] for weights in torchvision.models.get_model_weights(name))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(__doc__, zoo(), "torchvision", "architectures.jsonl", ("torch", "torchvision"), REMARK)
