"""Channels that a normalisation averages over: they go only if that is allowed, and then as if they had never been."""

from __future__ import annotations

import copy
from collections.abc import Callable

import lightning as L
import pytest
import torch
from exactness import difference, masked, outputs, sliced
from fit.boring import Boring, loader, trainer
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer

from lightning_taylor import Gradual, TaylorPruning, trace_channels
from lightning_taylor.graph.channels import ChannelGraph, Remove
from lightning_taylor.graph.copying import reveal


def grouped() -> nn.Module:
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
    return nn.Sequential(
        first, nn.GroupNorm(1, 8), nn.ReLU(), second, nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )


def tokens() -> nn.Module:
    return nn.Sequential(nn.Flatten(2), nn.Linear(256, 8), nn.LayerNorm(8, bias=False), nn.GELU(), nn.Linear(8, 2))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "GroupNorm": (grouped, 8),
    "LayerNorm": (tokens, 8),
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
                centred = some - some.mean(over, keepdim=True)
                out[..., mine] = centred / (centred.square().mean(over, keepdim=True) + self.norm.eps).sqrt()
        bias = 0 if self.norm.bias is None else self.norm.bias
        return (out * self.norm.weight + bias).movedim(-1, self.along)


def twin(model: nn.Module, graph: ChannelGraph, remove: Remove) -> nn.Module:
    """The masked net, in which every normalisation leaves the removed channels out."""
    found = masked(model, graph, remove)
    keep = graph.keep(remove)
    for name, module in list(found.named_modules()):
        kept = keep.get((f"{name}.weight", 0))
        if kept is None or not isinstance(module, nn.LayerNorm | nn.GroupNorm):
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


@pytest.mark.parametrize("name", NETS)
def test_without_the_option_these_channels_stay_and_the_reason_says_so(name: str) -> None:
    model = net(name)
    plain, allowed = trace_channels(model, X), trace_channels(model, X, allow_inexact_norms=True)
    freed = sum(group.size for group in allowed.groups.values()) - sum(group.size for group in plain.groups.values())
    assert freed == NETS[name][1]
    assert any("its statistics run over the channels" in reason for reason in plain.frozen.values())
    assert not any("statistics" in reason for reason in allowed.frozen.values())


def test_a_norm_without_a_weight_stays_since_nothing_tells_its_channels() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(256, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 2))
    graph = trace_channels(model, X.float(), allow_inexact_norms=True)
    assert not graph.groups
    assert "its statistics run over the channels" in graph.frozen["1"]


@pytest.mark.parametrize("name", ["ConvNeXt", "Swin"])
def test_a_fit_prunes_the_residual_stream_and_lands(name: str) -> None:
    model = NETS[name][0]()
    schedule = Gradual(3, 3, 18)
    pruner = TaylorPruning(0.4, schedule, normalization="none", allow_inexact_norms=True, measure_latency=False)
    fit: L.Trainer = trainer([pruner])
    fit.fit(Boring(model), loader(size=16))
    assert pruner.reached
    assert pruner.remaining["flops"] > 0.39
    assert model(torch.randn(1, 3, 16, 16)).isfinite().all()
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in model.modules() if isinstance(m, nn.LayerNorm))
    assert norm.normalized_shape == (stem.out_channels,)
