"""Channels that a normalisation averages over: they go only if that is allowed, and then as if they had never been."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from exactness import difference, masked, outputs, sliced
from fit.boring import Boring, loader, trainer
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer

from lightning_taylor import Gradual, TaylorPruning, trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Remove
from lightning_taylor.modules.model_copy import reveal
from lightning_taylor.trace.constraints.norm_statistics import MaskedNormMode


def grouped() -> nn.Module:
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
    return nn.Sequential(
        first, nn.GroupNorm(1, 8), nn.ReLU(), second, nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )


def tokens() -> nn.Module:
    return nn.Sequential(nn.Flatten(2), nn.Linear(256, 8), nn.LayerNorm(8, bias=False), nn.GELU(), nn.Linear(8, 2))


class ByHand(nn.Module):
    """What normalises the channels of (N, C, H, W) without saying so."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.normal(x) * self.weight[:, None, None]


class RootMeanSquare(ByHand):
    def normal(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)


class Variance(ByHand):
    def normal(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        return (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + self.eps)


class Fused(ByHand):
    """The kernel that ``nn.RMSNorm`` runs on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        return torch.ops.aten._fused_rms_norm(x, x.shape[-1:], self.weight, self.eps)[0].movedim(-1, 1)


class Response(ByHand):
    """ConvNeXt V2's: each map's norm beside the mean of all of them."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(2, 3), keepdim=True)
        return x + x * size / (size.mean(1, keepdim=True) + self.eps) * self.weight[:, None, None]


def by_hand(norm: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 6, 3), norm(6), nn.Conv2d(6, 2, 1)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "GroupNorm": (grouped, 8),
    "LayerNorm": (tokens, 8),
    "RMSNorm": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(256, 8), nn.RMSNorm(8), nn.GELU(), nn.Linear(8, 2)), 8),
    # torch's operator for it came after 2.6
    **({"RMSNorm on a GPU": (by_hand(Fused), 14)} if hasattr(torch.ops.aten, "_fused_rms_norm") else {}),
    "RMSNorm by hand": (by_hand(RootMeanSquare), 14),
    "LayerNorm by hand": (by_hand(Variance), 14),
    "response norm": (by_hand(Response), 14),
    "ConvNeXt": (lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=2), 8 + 16),
    "Swin": (lambda: SwinTransformer([2, 2], 16, [1, 1], [2, 4], [4, 4], num_classes=2), 16 + 32),
}
"""Name -> a net, and how many of its channels only the option sets free."""

X = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETS[name][0]().double().eval()
    reveal(model, torch.Generator().manual_seed(2))
    return model


class Plainly(nn.Module):
    """A normalisation that looks at each example's kept channels only, one group after the other."""

    def __init__(self, norm: nn.Module, kept: list[int], groups: int, along: int) -> None:
        super().__init__()
        self.norm, self.kept, self.groups, self.along = norm, kept, groups, along

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.along, -1)
        out = torch.zeros_like(x)
        per_group = x.shape[-1] // self.groups
        for g in range(self.groups):
            mine = [c for c in self.kept if c // per_group == g]
            over = (-1,) if self.along == -1 else tuple(range(1, x.ndim))
            if mine:
                some = x[..., mine]
                centred = some if isinstance(self.norm, nn.RMSNorm) else some - some.mean(over, keepdim=True)
                eps = torch.finfo(x.dtype).eps if self.norm.eps is None else self.norm.eps
                out[..., mine] = centred / (centred.square().mean(over, keepdim=True) + eps).sqrt()
        bias = getattr(self.norm, "bias", None)
        return (out * self.norm.weight + (0 if bias is None else bias)).movedim(-1, self.along)


class Alone(nn.Module):
    """A normalisation of (N, C, H, W) that is given the kept channels alone."""

    def __init__(self, norm: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.kept, self.norm = kept, copy.deepcopy(norm)
        self.norm.weight = nn.Parameter(norm.weight[kept])

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy(1, self.kept, self.norm(x[:, self.kept]))


def twin(model: nn.Module, graph: ChannelGraph, remove: Remove) -> nn.Module:
    """The masked net, in which every normalisation leaves the removed channels out."""
    found = masked(model, graph, remove)
    keep = graph.keep(remove)
    for name, module in list(found.named_modules()):
        kept = keep.get((f"{name}.weight", 0))
        if kept is None or not isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | ByHand):
            continue
        if isinstance(module, ByHand):
            setattr(found, name, Alone(module, kept))
            continue
        of_maps = type(module).__name__ == "LayerNorm2d"  # ConvNeXt's, over the channels of (N, C, H, W)
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else 1
        plain = Plainly(copy.deepcopy(module), kept.tolist(), groups, 1 if isinstance(module, nn.GroupNorm) else -1)
        if of_maps:
            plain = nn.Sequential(Moved(1, -1), plain, Moved(-1, 1))
        parent, _, own = name.rpartition(".")
        setattr(found.get_submodule(parent), own, plain)
    return found


class Moved(nn.Module):
    def __init__(self, source: int, destination: int) -> None:
        super().__init__()
        self.source, self.destination = source, destination

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.source, self.destination)


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("name", NETS)
def test_the_smaller_net_is_the_one_whose_statistics_never_saw_the_removed_channels(name: str, share: float) -> None:
    model = net(name)
    graph = trace_channels(model, X, allow_inexact_norms=True)
    remove = graph.sample(share, torch.Generator().manual_seed(3))
    found, expected = outputs(sliced(model, graph, remove), X), outputs(twin(model, graph, remove), X)
    assert difference(expected, found) < 1e-10
    assert difference(outputs(model, X), found) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_without_the_option_these_channels_stay_and_the_reason_says_so(name: str) -> None:
    model = net(name)
    plain, allowed = trace_channels(model, X), trace_channels(model, X, allow_inexact_norms=True)
    freed = sum(group.size for group in allowed.groups.values()) - sum(group.size for group in plain.groups.values())
    assert freed == NETS[name][1]
    assert any("its statistics run over the channels" in reason for reason in plain.frozen.values())
    assert not any("statistics" in reason for reason in allowed.frozen.values())


def test_an_average_that_goes_elsewhere_is_no_normalisation() -> None:
    class Attended(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.cat([x.mean(1, keepdim=True), torch.zeros_like(x[:, :1])], 1).sum(1, keepdim=True)

    class Swapped(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.flip(1).mean(1, keepdim=True)

    class Kept(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.copy_(x.mean(1).flatten()[0])
            return x * self.weight[:, None, None]

    for norm in (Attended, Swapped, Kept):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.Conv2d(8, 2, 1))
        graph = trace_channels(model, X.float(), allow_inexact_norms=True)
        assert not graph.groups, norm
        assert "reduced over the channels by mean" in graph.frozen["0"], norm


def test_of_two_averages_each_leaves_out_what_goes_from_its_own_channels() -> None:
    model = by_hand(Variance)().double().eval()
    reveal(model, torch.Generator().manual_seed(2))
    graph = trace_channels(model, X, allow_inexact_norms=True)
    remove = {"0": [0, 5], "3": [1]}
    found, expected = outputs(sliced(model, graph, remove), X), outputs(twin(model, graph, remove), X)
    assert difference(expected, found) < 1e-10
    other = twin(model, graph, {"0": [0, 4], "3": [1]})
    assert difference(outputs(other, X), found) > 1e-3


def test_a_norm_without_a_weight_stays_since_nothing_tells_its_channels() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(256, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 2))
    graph = trace_channels(model, X.float(), allow_inexact_norms=True)
    assert not graph.groups
    assert "its statistics run over the channels" in graph.frozen["1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ConvNeXt", "Swin"])
def test_a_fit_prunes_the_residual_stream_and_lands(name: str, tmp_path: Path) -> None:
    model = NETS[name][0]()
    schedule = Gradual(3, 3, 18)
    pruner = TaylorPruning(0.4, schedule, normalization="none", allow_inexact_norms=True, measure_latency=False)
    fit: L.Trainer = trainer([pruner], default_root_dir=tmp_path)
    fit.fit(Boring(model), loader(size=16))
    assert pruner.reached
    assert pruner.remaining["flops"] > 0.39
    assert model(torch.randn(1, 3, 16, 16)).isfinite().all()
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in model.modules() if isinstance(m, nn.LayerNorm))
    assert norm.normalized_shape == (stem.out_channels,)


def test_a_fit_prunes_what_an_rms_norm_averages_over(tmp_path: Path) -> None:
    model = NETS["RMSNorm"][0]()
    pruner = TaylorPruning(0.6, Gradual(3, 3, 18), allow_inexact_norms=True, measure_latency=False)
    trainer([pruner], default_root_dir=tmp_path).fit(Boring(model), loader(size=16))
    linear, norm = (next(m for m in model.modules() if isinstance(m, kind)) for kind in (nn.Linear, nn.RMSNorm))
    assert pruner.reached
    assert norm.normalized_shape == (linear.out_features,) == tuple(norm.weight.shape)


class TwoArrangements(nn.Module):
    """A grouped convolution that loses the same channels of each group, and a norm that loses whole groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=2)
        self.norm, self.head = nn.GroupNorm(2, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([self.grouped(x).mean((2, 3)), self.norm(x).mean((2, 3))], 1))


def test_what_two_layers_arrange_differently_stays() -> None:
    graph = trace_channels(TwoArrangements().double(), torch.randn(1, 3, 8, 8).double())
    assert "stem" not in graph.groups
    assert graph.frozen["stem"].startswith("arranged as a grid by convolution in grouped")
    assert "otherwise by native_group_norm in norm" in graph.frozen["stem"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("examples", [1, 2])
def test_a_masked_norm_fills_its_outcome_in_the_order_that_the_norm_does(
    memory_format: torch.memory_format, examples: int
) -> None:
    x = torch.randn(examples, 8, 6, 6).to(memory_format=memory_format)
    norm = nn.GroupNorm(4, 8).requires_grad_(False)
    with MaskedNormMode({id(norm.weight): torch.arange(4)}, {}):
        masked = norm(x)
    # What is random after it (``randn_like``) draws in this order, so that the smaller network gets other numbers else.
    assert masked.stride() == norm(x).stride()
    torch.testing.assert_close(masked[:, :4], norm(x)[:, :4])
