"""Real architectures, in double precision: what the graph calls removable is removed exactly, and how much that is.

Batch-norm statistics, affines and biases are random (``zoo.randomize``), and so is what a model starts constant
(ViT's head of zeros, ConvNeXt's layer scale of 1e-6), or a removal would change nothing and prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
import zoo
from exactness import difference, masked, sliced
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.fcn import _fcn_resnet
from torchvision.models.video.resnet import (
    BasicBlock,
    BasicStem,
    Conv2Plus1D,
    Conv3DSimple,
    R2Plus1dStem,
    VideoResNet,
)

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.modules.model_copy import reveal
from lightning_taylor.trace.api import trace_channels
from lightning_taylor.utilities.calls import tensors_in


@dataclass(frozen=True)
class Net:
    """A row of the table.

    Attributes:
        name: in torchvision's registry, or in ``FEW_BLOCKS``, or what ``build`` makes of it.
        removable: output channels over all layers that belong to a group.
        heads: layers that make the network's outputs, which are not counted.
        channels: how many output channels there are; as many as are removable if None.
        side: of the input image or clip.
        slow: whether it is left to CI, since a smaller one of its kind is always there.
    """

    name: str
    removable: int
    heads: tuple[str, ...] = ("fc",)
    channels: int | None = None
    side: int = 64
    slow: bool = False


FEW_BLOCKS: dict[str, Callable[[], nn.Module]] = {
    # Two layers of vit_b_16's twelve, which are all alike: 64 wide with four heads, and an MLP of 128.
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 2, 4, 64, 128),
    "densenet": lambda: torchvision.models.DenseNet(32, (2, 2, 2, 2)),
    "convnext": lambda: ConvNeXt([CNBlockConfig(d, 2 * d if d < 768 else None, 1) for d in (96, 192, 384, 768)]),
    "bottlenecks": lambda: ResNet(Bottleneck, [2, 1, 1, 1]),
    "clips": lambda: VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1] * 4, BasicStem),
    "clips_and_frames": lambda: VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [1] * 4, R2Plus1dStem),
    "inception": lambda: nn.Sequential(
        *(BasicConv2d(3, 16, kernel_size=3, stride=2), InceptionA(16, 8), InceptionB(232), InceptionC(712, 16)),
        *(InceptionD(768), InceptionE(1280), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 5)),
    ),
    "fcn": lambda: _fcn_resnet(ResNet(Bottleneck, [1] * 4, replace_stride_with_dilation=[False, True, True]), 21, None),
}
"""Networks of torchvision's classes with one or two of each kind of block, where the whole ones have many."""

HIDDEN = 128
"""Width of the hidden layers of AlexNet and VGG here: of 4096 each, they would have nine tenths of the parameters."""

NETS = [
    Net("alexnet", 1152 + 2 * HIDDEN, ("classifier.6",), slow=True),
    Net("vgg11_bn", 2752 + 2 * HIDDEN, ("classifier.6",), slow=True),
    Net("resnet18", 4800),
    Net("bottlenecks", 64 + 2 * (64 + 64 + 256) + 256 + sum(2 * c + 8 * c for c in (128, 256, 512)), slow=True),
    Net("densenet", 64 + 8 * (128 + 32) + 3 * 64, ("classifier",), slow=True),
    Net("googlenet", 9584, ("fc", "aux1.fc2", "aux2.fc2")),
    Net("inception", 16 + 440 + 640 + 864 + 1280 + 3264, ("8",), slow=True),
    Net("mobilenet_v2", 17056, ("classifier.1",)),
    Net("squeezenet1_1", 2944, ("classifier.1",)),
    Net("clips", 64 + 2 * 64 + 3 * (128 + 256 + 512), side=32),
    # Each convolution over frames has one over time before it, whose width keeps the number of weights of the whole.
    Net("clips_and_frames", 45 + 64 + 2 * (144 + 64 + 230 + 128 + 460 + 256 + 921 + 512) + 896, side=32, slow=True),
    Net("s3d", 10608, ("classifier.1",), side=32, slow=True),
    Net("fcn", 64 + 10 * (64 + 128 + 256 + 512) + 512, ("classifier.4",), slow=True),
    Net("deeplabv3_mobilenet_v3_large", 19072, ("classifier.4",), slow=True),
    Net("lraspp_mobilenet_v3_large", 17536, ("classifier.low_classifier", "classifier.high_classifier")),
    Net("resnet18_fpn", 5824, tuple(f"fpn.layer_blocks.{i}.0" for i in range(4))),
    Net("fasterrcnn_mobilenet_v3_large_fpn", 20608, (), 20708, side=128, slow=True),
    Net("regnet_y_400mf", 18784, ("fc",), 18784),
    Net("shufflenet_v2_x0_5", 3448, ("fc",), 3976, slow=True),
    Net("convnext", 4 * 1440, ("classifier.2",), 7 * 1440, slow=True),
    Net("vit", 2 * (3 * 64 + 128), ("heads.head",), 2 * (3 * 64 + 128 + 2 * 64) + 64, slow=True),
]


@dataclass(frozen=True)
class Traced:
    net: Net
    model: nn.Module
    inputs: tuple[Any, ...]
    graph: ChannelGraph


@pytest.fixture(
    scope="module",
    params=[pytest.param(net, id=net.name, marks=[pytest.mark.slow] if net.slow else []) for net in NETS],
)
def traced(request: pytest.FixtureRequest) -> Traced:
    net: Net = request.param
    torch.manual_seed(0)
    model, inputs = build(net)
    zoo.randomize(model.double())
    reveal(model, torch.Generator().manual_seed(1))
    return Traced(net, model, inputs, trace_channels(model, inputs))


def build(net: Net) -> tuple[nn.Module, tuple[Any, ...]]:
    if "rcnn" in net.name:
        return detector(net)
    if net.name == "resnet18_fpn":
        model: nn.Module = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    elif net.name in FEW_BLOCKS:
        model = FEW_BLOCKS[net.name]()
    else:
        model = smaller(zoo.torchvision_model(net.name, net.side)[0])
    clip = {"clips": (4,), "clips_and_frames": (4,), "s3d": (14,)}.get(net.name, ())
    return model, (torch.randn(1, 3, *clip, net.side, net.side, dtype=torch.float64),)


def smaller(model: nn.Module) -> nn.Module:
    """Give a model the same layers in a smaller size, where nothing but size makes it slow; return it."""
    if isinstance(model, torchvision.models.AlexNet | torchvision.models.VGG):
        linear = {place: layer for place, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)}
        first, *_, last = linear.values()
        widths = [first.in_features, HIDDEN, HIDDEN, last.out_features]
        for place, before, after in zip(linear, widths, widths[1:], strict=False):
            model.classifier[place] = nn.Linear(before, after)
    if isinstance(model, torchvision.models.video.S3D):
        # Its last pooling spans the 7x7 positions of a clip of 224 px; it has no weights, and small clips are faster.
        model.avgpool = nn.AvgPool3d((2, 1, 1), stride=1)
    return model


def detector(net: Net) -> tuple[nn.Module, tuple[Any, ...]]:
    small = {"min_size": net.side, "max_size": net.side}
    model = torchvision.models.get_model(net.name, weights=None, weights_backbone=None, num_classes=5, **small)
    boxes = torch.tensor([[10, 10, 60, 60], [30, 40, 100, 120]], dtype=torch.float64)
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    return model, ([torch.rand(3, net.side, net.side, dtype=torch.float64)], [target])


def run(model: nn.Module, inputs: tuple[Any, ...], *, training: bool) -> list[Tensor]:
    """Every output of the evaluation or the training path, the latter without its randomness.

    What is random in training (dropout, batch statistics, stochastic depth) has no modules inside it; what decides
    which path is taken, and runs auxiliary heads, has.
    """
    for module in model.modules():
        module.training = training and next(module.children(), None) is not None
    torch.manual_seed(0)
    with torch.no_grad():
        return [t for t in tensors_in(model(*inputs)) if t.is_floating_point()]


def removals(graph: ChannelGraph) -> Iterator[dict[str, Tensor]]:
    """A quarter of every group, three quarters, and of each another share: what must stay balanced shows itself."""
    generator = torch.Generator().manual_seed(2)
    yield graph.sample(0.25, generator)
    yield graph.sample(0.75, generator)
    shares = torch.rand(len(graph.groups), generator=generator).tolist()
    halves = [graph.sample(share, generator) for share in shares]
    yield {name: half[name] for name, half in zip(graph.groups, halves, strict=True) if name in half}


def twice(values: Any) -> Any:
    return torch.cat([values, values]) if isinstance(values, Tensor) else values * 2


@pytest.mark.slow
def test_every_channel_but_the_outputs_is_removable_or_the_count_says_how_many(traced: Traced) -> None:
    graph, net = traced.graph, traced.net
    heads = {layer for layer, reason in graph.frozen.items() if reason == "reaches the output"}
    assert heads == set(net.heads)
    assert graph.unseen == ()
    carried: dict[str, set[int]] = {layer: set() for layer in graph.layers if layer not in heads}
    for layer in carried:
        for _, s in graph.slices_by_axis().get(graph.layers[layer], []):
            carried[layer].update(s.index.flatten().tolist())
    channels = sum(graph.width(graph.layers[layer]) for layer in carried)
    assert (sum(map(len, carried.values())), channels) == (net.removable, net.channels or net.removable)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_sliced_net_computes_what_the_masked_net_computes(traced: Traced, training: bool) -> None:
    dense = run(traced.model, traced.inputs, training=training)
    for remove in removals(traced.graph):
        expected = run(masked(traced.model, traced.graph, remove), traced.inputs, training=training)
        found = run(sliced(traced.model, traced.graph, remove), traced.inputs, training=training)
        assert difference(expected, found) < 1e-10
        assert difference(expected, dense) > 1e-6, "the removal must matter for the comparison to count"


def test_the_sliced_net_goes_on_training(traced: Traced) -> None:
    smaller = sliced(traced.model, traced.graph, next(removals(traced.graph))).train()
    with torch.no_grad():
        answers = list(tensors_in(smaller(*map(twice, traced.inputs))))
    assert answers
    assert all(bool(t.isfinite().all()) for t in answers)
