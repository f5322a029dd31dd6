"""Small networks in float64 with their channel graphs written by hand, so that no test here needs the tracer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import ChannelGroup, Role, Slice

P, T, C = Role.PRODUCER, Role.PASS_THROUGH, Role.CONSUMER
Place = tuple[str, int, Role]


def graph_of(model: nn.Module, groups: dict[str, tuple[int, Iterable[Place]]]) -> ChannelGraph:
    """Group name -> (number of channels, places); channel c owns an equal run of entries along each dimension."""
    shapes = {n: tuple(t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    built = {}
    for name, (size, places) in groups.items():
        slices = (Slice(t, d, torch.arange(shapes[t][d]).view(size, -1), role) for t, d, role in places)
        built[name] = ChannelGroup(name, tuple(slices))
    return ChannelGraph(built, {}, {name: (f"{name}.weight", 0) for name in groups}, shapes, shapes)


def batch_norm(name: str) -> list[Place]:
    return [(f"{name}.{t}", 0, T) for t in ("weight", "bias", "running_mean", "running_var")]


class Chain(nn.Module):
    """conv - BN - ReLU - conv - ReLU - pool - flatten - linear.

    No bias before a batch norm, here and below: its gradient is rounding noise around zero, which an optimizer that
    goes by the sign (Rprop) or divides by the magnitude (RMSprop, Adagrad) makes a full step of.
    """

    inputs = (4, 3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a_bn(self.a(x)).relu()
        x = nn.functional.max_pool2d(self.b(x).relu(), 2)
        return self.head(x.flatten(1))

    def graph(self) -> ChannelGraph:
        a = [("a.weight", 0, P), *batch_norm("a_bn"), ("b.weight", 1, C)]
        b = [("b.weight", 0, P), ("b.bias", 0, P), ("head.weight", 1, C)]
        return graph_of(self, {"a": (6, a), "b": (5, b)})


class Residual(nn.Module):
    """A stem, one residual block, a depthwise convolution with two outputs per channel, and a linear head."""

    inputs = (4, 3, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.a, self.a_bn = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.b_bn = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 12, 3, groups=6)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_bn(self.stem(x)).relu()
        x = (x + self.b_bn(self.b(self.a_bn(self.a(x)).relu()))).relu()
        return self.head(self.deep(x).flatten(1))

    def graph(self) -> ChannelGraph:
        stem = [("stem.weight", 0, P), *batch_norm("stem_bn"), ("a.weight", 1, C)]
        stem += [("b.weight", 0, P), *batch_norm("b_bn")]
        stem += [("deep.weight", 0, T), ("deep.bias", 0, T), ("head.weight", 1, C)]
        a = [("a.weight", 0, P), *batch_norm("a_bn"), ("b.weight", 1, C)]
        return graph_of(self, {"stem": (6, stem), "a": (4, a)})


class Perceptron(nn.Module):
    """Two-dimensional weights only, for the optimizers that know no others."""

    inputs = (6, 5)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu())

    def graph(self) -> ChannelGraph:
        a = [("a.weight", 0, P), ("a.bias", 0, P), ("b.weight", 1, C)]
        b = [("b.weight", 0, P), ("b.bias", 0, P), ("head.weight", 1, C)]
        return graph_of(self, {"a": (8, a), "b": (6, b)})


class Words(nn.Module):
    """An embedding with sparse gradients before a linear head."""

    inputs = (6, 4)

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 8, sparse=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x.abs().mul(4).long().clamp(max=9)).mean(1))

    def graph(self) -> ChannelGraph:
        return graph_of(self, {"words": (8, [("words.weight", 1, P), ("head.weight", 1, C)])})


def build(cls: type, seed: int = 0) -> nn.Module:
    """The network in float64 with running statistics and gains that are not their trivial defaults."""
    torch.manual_seed(seed)
    model = cls().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def batches(model: nn.Module, count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shape = model.inputs
    return [
        (
            torch.randn(*shape, generator=generator, dtype=torch.float64),
            torch.randint(3, shape[:1], generator=generator),
        )
        for _ in range(count)
    ]
