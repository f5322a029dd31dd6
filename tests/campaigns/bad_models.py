"""Models that cannot be pruned, and exotic ones that can."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from campaigns.cases import Case
from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.trace.api import require_groups

X = torch.randn(2, 3, 12, 12)


@dataclasses.dataclass
class Output:
    logits: Tensor
    name: str = "logits"


@dataclasses.dataclass(slots=True)
class SlottedOutput:
    logits: Tensor


class Small(nn.Sequential):
    """Conv, ReLU, pooling, linear; ``wrap`` says what the forward pass makes of the logits."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__(
            zoo.conv(3, 8), nn.ReLU(), zoo.conv(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        )
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


def raising(_: Any) -> Any:
    raise KeyError("user code")


class Branching(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if bool(y.sum() > 0) else y


class Looping(nn.Module):
    """As many rounds as the data say."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.round, self.head = zoo.conv(3, 8), zoo.conv(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(int(x.abs().mean() * 10) % 3 + 1):
            x = F.relu(self.round(x))
        return self.head(x.mean((2, 3)))


class Locked(Small):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class NoSuper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)


class Generated(Small):
    def forward(self, x: Tensor) -> Any:
        return (y for y in [super().forward(x)])


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = zoo.conv(3, 8), zoo.conv(8, 4)
        self.filter = nn.Parameter(torch.randn(8, 12, 7, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.irfft2(torch.fft.rfft2(self.one(x)) * self.filter, s=(12, 12))
        return self.two(x)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = zoo.conv(3, 8), zoo.conv(8, 6), nn.Linear(6, 3)
        self.mix = nn.Parameter(torch.eye(6).to_sparse(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(F.relu(self.one(x))).mean((2, 3))
        return self.head(torch.sparse.mm(self.mix, x.t()).t())


class Detaching(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class Randomly(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand_like(x))


class Counting(Small):
    """Raises at its third call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("called too often")
        return super().forward(x)


def frozen() -> nn.Module:
    return Small().requires_grad_(False)


def normed(norm: Callable[..., Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Small()
        norm(net[0])
        norm(net[2])
        return net

    return make


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def parametrized() -> nn.Module:
    net = Small()
    parametrize.register_parametrization(net[2], "weight", Doubled())
    return net


def dynamic_quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Small(), {nn.Linear}, torch.qint8)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.LazyConv2d(4, 3))


def trace(net: nn.Module) -> Any:
    """Trace, and prune half of it if that is possible; the smaller one must still run."""
    graph = require_groups(trace_channels(net, X))
    smaller = prune_channels(net, graph, graph.sample(0.5))
    net(X)
    return smaller


def half(net: nn.Module) -> Any:
    return require_groups(trace_channels(net, X.half()))


def bf16(net: nn.Module) -> Any:
    return require_groups(trace_channels(net, X.bfloat16()))


def only(text: str) -> str:
    return f"no channel of this model can be removed.*{text}"


# Name, how to build it, what it says (None: it works), errors of others that are as good.
MODELS: list[tuple[str, Callable[[], nn.Module], str | None]] = [
    ("single linear", lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 5)), only("1: reaches the output")),
    ("single conv", lambda: nn.Conv2d(3, 8, 3), only("reaches the output")),
    ("only LayerNorm", lambda: nn.LayerNorm(12), only("")),
    ("only ReLU", nn.ReLU, only("no layers were run")),
    ("identity", nn.Identity, only("no layers were run")),
    ("empty sequential", nn.Sequential, only("no layers were run")),
    ("only BatchNorm", lambda: nn.BatchNorm2d(3), only("")),
    ("no forward", NoSuper, "NoSuper raised NotImplementedError"),
    ("module list", lambda: nn.ModuleList([nn.Conv2d(3, 8, 3)]), "ModuleList raised NotImplementedError"),
    ("embedding", lambda: nn.Embedding(10, 3), "Embedding raised"),
    ("all frozen (requires_grad)", frozen, None),
    (
        "scripted",
        lambda: torch.jit.script(nn.Sequential(zoo.conv(3, 8), nn.ReLU(), zoo.conv(8, 2))),
        "the model is scripted",
    ),
    ("jit traced", lambda: torch.jit.trace(Small(), X), "the model is scripted"),
    (
        "a scripted part",
        lambda: nn.Sequential(torch.jit.script(zoo.conv(3, 8)), zoo.conv(8, 3)),
        "module '0' is scripted",
    ),
    ("dynamic quantized", dynamic_quantized, "is quantized"),
    ("lazy", lazy, "parameter '0.weight' is lazy"),
    ("lazy batch norm", lambda: nn.Sequential(zoo.conv(3, 8), nn.LazyBatchNorm2d()), "is lazy"),
    ("sparse parameter", Sparse, "'mix' is sparse"),
    ("complex parameter", Complex, None),
    ("weight_norm", normed(parametrizations.weight_norm), None),
    ("spectral_norm", normed(parametrizations.spectral_norm), only("no rule for mv")),
    ("old spectral_norm", normed(spectral_norm), only("no rule for mv")),
    ("own parametrization", parametrized, None),
    ("forward raises", lambda: Small(raising), "Small raised KeyError.*user code"),
    ("forward raises at its third call", Counting, "raised RuntimeError.*called too often"),
    ("returns None", lambda: Small(lambda y: None), "Small returned NoneType"),
    ("returns a string", lambda: Small(lambda y: "cat"), "Small returned str"),
    ("returns a float", lambda: Small(lambda y: 3.5), "Small returned float"),
    ("returns an item", lambda: Small(lambda y: y.sum().item()), "Small returned float"),
    ("returns numpy", lambda: Small(lambda y: y.detach().numpy()), "Small returned ndarray"),
    ("returns a generator", Generated, "Generated returned generator"),
    ("returns a dataclass", lambda: Small(Output), None),
    ("returns a dataclass with slots", lambda: Small(SlottedOutput), None),
    ("returns a dict", lambda: Small(lambda y: {"logits": y}), None),
    ("returns nested", lambda: Small(lambda y: [("a", {"b": [y]}), None]), None),
    ("branches on the data", Branching, None),
    ("loops on the data", Looping, only("reduced over the channels")),
    ("detaches", Detaching, None),
    ("draws random numbers", Randomly, None),
    ("holds a lock", Locked, None),
    ("on the meta device", lambda: Small().to("meta"), "meta"),
    ("partly on the meta device", lambda: nn.Sequential(zoo.conv(3, 8), zoo.conv(8, 8).to("meta")), "meta"),
    ("weights with nan", lambda: _filled(float("nan")), "no finite number.*'0.weight' is not finite"),
    ("weights with inf", lambda: _filled(float("inf")), "no finite number.*'0.weight' is not finite"),
    ("weights of zero", lambda: _filled(0.0), None),
    ("channels_last", lambda: Small().to(memory_format=torch.channels_last), None),
    ("one channel each", lambda: nn.Sequential(zoo.conv(3, 1), nn.ReLU(), zoo.conv(1, 2)), only("reaches the output")),
    (
        "width of zero",
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 0, 1)),
        "raised RuntimeError.*weight to be at least 1",
    ),
    ("shared modules", zoo.Shared, None),
    ("hard-coded widths", zoo.HardCoded, None),
    ("compiled, not run", lambda: torch.compile(Small(), backend="eager"), None),
]


def _filled(value: float) -> nn.Module:
    net = Small()
    for p in net.parameters():
        nn.init.constant_(p, value)
    return net


def _cases() -> Iterator[Case]:
    for name, make, says in MODELS:
        yield Case(f"model: {name}", trace, says, make, changes=says is None)
    yield Case("model: in half", half, None, lambda: Small().half())
    yield Case("model: in bfloat16", bf16, None, lambda: Small().bfloat16())


CASES: list[Case] = list(_cases())
