"""Torchvision's own classes with fewer blocks and narrower ones: every kind of block once or twice, in less time.

``campaigns/architectures.py`` goes over the models as torchvision registers them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torchvision
from campaigns.measuring import Example
from torch import nn
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.models.maxvit import MaxVit
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.video import mvit
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DNoTemporal, Conv3DSimple, VideoResNet
from torchvision.models.video.swin_transformer import SwinTransformer3d

DEPTHS, HEADS = [2, 2, 2], [2, 4, 8]
"""Of Swin: a block of each stage with windows as they are, the next with shifted ones."""


def efficientnet_v2() -> nn.Module:
    """Fused and plain inverted bottlenecks, each with a stride, an expansion, and a block that keeps its shape."""
    fused = [FusedMBConvConfig(1, 3, 1, 8, 8, 1), FusedMBConvConfig(4, 3, 2, 8, 16, 2)]
    plain = [MBConvConfig(4, 3, 2, 16, 24, 2), MBConvConfig(6, 3, 1, 24, 32, 2)]
    return EfficientNet([*fused, *plain], 0.2, last_channel=48, num_classes=5)


def resnext() -> nn.Module:
    """Eight groups of four channels in the first stage, of 32 in the last."""
    return torchvision.models.ResNet(Bottleneck, [2, 1, 1, 1], num_classes=5, groups=8, width_per_group=4)


def mc3() -> nn.Module:
    """Convolutions over time in the first stage, over frames alone in the others."""
    return VideoResNet(BasicBlock, [Conv3DSimple, *[Conv3DNoTemporal] * 3], [1] * 4, BasicStem, num_classes=5)


def swin() -> nn.Module:
    return SwinTransformer([4, 4], 16, DEPTHS, HEADS, [7, 7], num_classes=5)


def swin_v2() -> nn.Module:
    """With a network for the relative positions, and cosine attention."""
    second = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer([4, 4], 16, DEPTHS, HEADS, [8, 8], num_classes=5, **second)


def swin3d() -> nn.Module:
    return SwinTransformer3d([2, 4, 4], 16, DEPTHS, HEADS, [8, 7, 7], num_classes=5)


def maxvit() -> nn.Module:
    """Two stages of a block with a projection and one without; attention in windows and over a grid."""
    return MaxVit((56, 56), 8, 7, [8, 16], [2, 2], head_dim=4, stochastic_depth_prob=0.2, num_classes=5)


def small_mvit(name: str, side: int, frames: int) -> nn.Module:
    """An MViT for small clips, a quarter as wide, with the first five of its blocks that differ from the one before.

    Their heads are one, then two, then four; their queries are pooled and are not; they widen and keep their width.
    """
    whole = mvit._mvit

    def small(*, block_setting: list[mvit.MSBlockConfig], **kwargs: Any) -> nn.Module:
        blocks = [
            replace(block, input_channels=block.input_channels // 4, output_channels=block.output_channels // 4)
            for block, _ in itertools.groupby(block_setting)
        ][:5]
        size = {"spatial_size": (side, side), "temporal_size": frames, "num_classes": 5}
        return whole(block_setting=blocks, **kwargs | size)

    with mock.patch.object(mvit, "_mvit", small):
        return torchvision.models.get_model(name, weights=None)


def image(make: Callable[[], nn.Module], *shape: int) -> Callable[[], Example]:
    return lambda: (make(), (torch.randn(1, 3, *shape),))


MODELS: dict[str, Callable[[], Example]] = {
    "efficientnet_v2": image(efficientnet_v2, 64, 64),
    "resnext": image(resnext, 64, 64),
    "mc3": image(mc3, 4, 32, 32),
    "swin": image(swin, 64, 64),
    "swin_v2": image(swin_v2, 64, 64),
    "swin3d": image(swin3d, 4, 64, 64),
    "maxvit": image(maxvit, 56, 56),
    "mvit_v1": image(lambda: small_mvit("mvit_v1_b", 64, 8), 8, 64, 64),
    "mvit_v2": image(lambda: small_mvit("mvit_v2_s", 64, 8), 8, 64, 64),
}
"""Name -> how to build it, and its input: images whose sides are no multiples of the windows of Swin."""
