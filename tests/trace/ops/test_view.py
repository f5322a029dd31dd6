"""Operators that move elements: what is cut along positions, branches or entries of a parameter is not cut channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from redrawn import prunable
from torch import Tensor, nn

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(dims: int, into: int, out: int, size: int = 3, **kwargs: str) -> nn.Module:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return kind(into, out, size, padding=size // 2, **kwargs)  # type: ignore[arg-type]


class Modulated(nn.Module):
    """Features scaled and shifted by what one layer makes of their mean, in the way that ``take`` takes it apart."""

    def __init__(self, take: Callable[[Tensor], tuple[Tensor, Tensor]], dims: int) -> None:
        super().__init__()
        self.take, self.dims = take, dims
        self.stem, self.body, self.head = conv(dims, 3, 12), conv(dims, 12, 12), conv(dims, 12, 4, 1)
        self.style = nn.Linear(12, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        scale, shift = self.take(self.style(x.flatten(2).mean(2)))
        scale, shift = (t.reshape(*t.shape[:2], *[1] * self.dims) for t in (scale, shift))
        return self.head((self.body(x) * scale + shift).relu())


TAKEN: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "view, select": lambda s: (s.view(s.shape[0], 2, -1)[:, 0], s.view(s.shape[0], 2, -1)[:, 1]),
    "pairs": lambda s: (s.reshape(s.shape[0], -1, 2)[..., 0], s.reshape(s.shape[0], -1, 2)[..., 1]),
    "unbind": lambda s: s.unflatten(1, (2, -1)).unbind(1),  # type: ignore[dict-item]
    "chunk": lambda s: s.chunk(2, 1),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("taken", TAKEN)
def test_scale_and_shift_go_with_the_channels_that_they_modulate(taken: str, dims: int) -> None:
    graph = prunable(Modulated(TAKEN[taken], dims), torch.randn(2, 3, *[5] * dims))
    assert {name: group.size for name, group in graph.groups.items()} == {"stem": 12, "style": 12}
    assert {s.tensor for s in graph.groups["style"].slices} >= {"style.weight", "body.weight", "head.weight"}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_circular_padding_moves_positions(dims: int) -> None:
    net = nn.Sequential(conv(dims, 3, 8), conv(dims, 8, 8, 5, padding_mode="circular"), nn.ReLU(), conv(dims, 8, 4, 1))
    graph = prunable(net, torch.randn(2, 3, *[6] * dims))
    assert {name: group.size for name, group in graph.groups.items()} == {"0": 8, "1": 8}


class Framed(nn.Module):
    """Features in the middle of a larger map of zeros, from which they are read again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(2, 3, 8), conv(2, 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        frame = x.new_zeros(*x.shape[:2], 12, 12)
        frame[:, :, 2:10, 2:10] = x
        return self.head(frame[:, :, 2:10].relu()[..., 2:10])


def test_a_frame_of_zeros_around_features_has_no_channels() -> None:
    assert {name: group.size for name, group in prunable(Framed(), IMAGE).groups.items()} == {"stem": 8}


class Halves(nn.Module):
    """Half of the channels, by a number in the code, in a buffer of fixed width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(2, 3, 8), conv(2, 12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = x.new_zeros(x.shape[0], 12, *x.shape[2:])
        wide[:, 2:10] = x
        return self.head(wide)


def test_channels_written_into_a_buffer_of_fixed_width_stay() -> None:
    graph = prunable(Halves(), IMAGE)
    assert not graph.groups
    assert "stem" in graph.frozen


class Mixture(nn.Module):
    """Branches weighed by scalars that ``pick`` picks from a parameter, two cells of them side by side."""

    def __init__(self, shape: tuple[int, ...], pick: Callable[[Tensor, int, int], Tensor]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv(2, 3, 8, size) for size in (1, 3, 5)])
        self.alphas, self.pick, self.head = nn.Parameter(torch.randn(shape)), pick, conv(2, 16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = [branch(x).relu() for branch in self.branches]
        cells = [sum(self.pick(self.alphas, cell, i) * y for i, y in enumerate(made)) for cell in range(2)]
        return self.head(torch.cat(cells, 1))  # type: ignore[arg-type]


PICKED: dict[str, tuple[tuple[int, ...], Callable[[Tensor, int, int], Tensor]]] = {
    "one after the other": ((2, 2, 3), lambda a, cell, i: a[0].softmax(-1)[cell][i]),
    "several at once": ((2, 3), lambda a, cell, i: a.softmax(1)[cell, i]),
    "sigmoid": ((4, 2, 3), lambda a, cell, i: a.sigmoid()[3, cell, i]),
    "unbind": ((2, 3), lambda a, cell, i: a.unbind(0)[cell].exp().unbind(0)[i]),
    "slices": ((2, 3), lambda a, cell, i: a[cell : cell + 1].softmax(-1)[:, i].view(1, 1, 1, 1)),
    "bare": ((3, 2, 2), lambda a, cell, i: a[i, cell, 1]),
}


@pytest.mark.parametrize("picked", PICKED)
def test_scalars_that_are_picked_from_a_parameter_leave_the_channels_free(picked: str) -> None:
    graph = prunable(Mixture(*PICKED[picked]), IMAGE)
    assert [group.size for group in graph.groups.values()] == [8]
    assert all(s.tensor != "alphas" for group in graph.groups.values() for s in group.slices)


class Branches(nn.Module):
    """Selective kernels: the share of every branch at each channel, by ``weigh``; their sum is read."""

    def __init__(self, weigh: Callable[[Tensor], Tensor], kernels: int, dim: int) -> None:
        super().__init__()
        self.weigh, self.dim, self.stem = weigh, dim, conv(2, 3, 8)
        self.branches = nn.ModuleList([conv(2, 8, 8, 2 * i + 1) for i in range(kernels)])
        self.squeeze, self.excite, self.head = nn.Linear(8, 6), nn.Linear(6, 8 * kernels), conv(2, 8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        u = torch.stack([branch(x).relu() for branch in self.branches], self.dim)
        w = self.weigh(self.excite(self.squeeze(u.sum(self.dim).mean((2, 3))).relu()))
        return self.head((u * w.movedim(1, self.dim)[..., None, None]).sum(self.dim))


WEIGHED: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
    "view": lambda n: lambda w: w.view(w.shape[0], n, -1).softmax(1),
    "chunks": lambda n: lambda w: torch.stack(w.chunk(n, 1), 1).softmax(1),
    "sigmoid": lambda n: lambda w: w.unflatten(1, (n, -1)).sigmoid(),
}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kernels", [2, 3])
@pytest.mark.parametrize("weighed", WEIGHED)
def test_selective_kernels_lose_the_same_channels_of_every_branch(weighed: str, kernels: int, dim: int) -> None:
    graph = prunable(Branches(WEIGHED[weighed](kernels), kernels, dim), IMAGE)
    assert {name: group.size for name, group in graph.groups.items()} == {"stem": 8, "branches.0": 8, "squeeze": 6}


class Gates(nn.Module):
    """A softmax over the channels of stacked branches: each needs all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(2, 3, 8), conv(2, 3, 8), conv(2, 8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([self.a(x), self.b(x)], 1).softmax(2).sum(1))


def test_a_softmax_over_channels_still_freezes_them() -> None:
    graph = prunable(Gates(), IMAGE)
    assert not graph.groups
    assert "along the channels by _softmax" in graph.frozen["a"]


class Detections(nn.Module):
    """A head on the positions whose score is high enough, of which there are none yet, and at most three."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.score, self.head = conv(2, 3, 12), conv(2, 12, 1, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        found = x.movedim(1, 3)[self.score(x)[:, 0] > 1e6]
        return self.head(x.mean((2, 3))).sum() + self.head(found[:3]).sum() + self.head(found[2:]).sum()


def test_what_is_cut_out_of_nothing_is_no_channel() -> None:
    assert prunable(Detections(), IMAGE).groups.keys() == {"stem"}
