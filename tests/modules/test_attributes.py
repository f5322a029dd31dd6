"""Attributes follow the shapes, whatever the module and however it stores its weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.modules.attributes import follow_shapes, register_attributes
from lightning_taylor.modules.resize import shrink_modules

# One row: the module, what stays of which of its tensors, an input, and the module torch would have built.
Row = tuple[nn.Module, dict[tuple[str, int], list[int]], nn.Module]
ROWS: dict[str, Callable[[], Row]] = {
    "conv, outputs": lambda: (nn.Conv2d(4, 6, 3), {("weight", 0): [0, 2], ("bias", 0): [0, 2]}, nn.Conv2d(4, 2, 3)),
    "conv, inputs": lambda: (nn.Conv1d(4, 6, 3), {("weight", 1): [1, 2, 3]}, nn.Conv1d(3, 6, 3)),
    "conv of one channel": lambda: (nn.Conv2d(1, 6, 3, bias=False), {("weight", 0): [1, 2]}, nn.Conv2d(1, 2, 3)),
    "depthwise": lambda: (
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        {("weight", 0): [0, 5]},
        nn.Conv2d(2, 2, 3, groups=2),
    ),
    "depthwise, two outputs each": lambda: (
        nn.Conv3d(3, 6, 1, groups=3, bias=False),
        {("weight", 0): [0, 1, 4, 5]},
        nn.Conv3d(2, 4, 1, groups=2),
    ),
    "depthwise, fewer outputs each": lambda: (
        nn.Conv2d(3, 6, 1, groups=3, bias=False),
        {("weight", 0): [1, 2, 5]},
        nn.Conv2d(3, 3, 1, groups=3),
    ),
    "grouped, fewer of each": lambda: (
        nn.Conv2d(8, 8, 1, groups=2, bias=False),
        {("weight", 0): [0, 1, 3, 4, 5, 7], ("weight", 1): [0, 2]},
        nn.Conv2d(4, 6, 1, groups=2),
    ),
    "grouped, a whole group": lambda: (
        nn.Conv2d(9, 6, 1, groups=3, bias=False),
        {("weight", 0): [0, 1, 4, 5]},
        nn.Conv2d(6, 4, 1, groups=2),
    ),
    "transposed": lambda: (
        nn.ConvTranspose2d(4, 6, 3, bias=False),
        {("weight", 0): [0, 1, 2], ("weight", 1): [0, 5]},
        nn.ConvTranspose2d(3, 2, 3),
    ),
    "transposed, depthwise": lambda: (
        nn.ConvTranspose2d(4, 8, 3, groups=4, bias=False),
        {("weight", 0): [0, 3]},
        nn.ConvTranspose2d(2, 4, 3, groups=2),
    ),
    "linear": lambda: (
        nn.Linear(5, 4),
        {("weight", 0): [0, 1], ("weight", 1): [2, 3, 4], ("bias", 0): [0, 1]},
        nn.Linear(3, 2),
    ),
    "bilinear": lambda: (nn.Bilinear(3, 4, 5, bias=False), {("weight", 2): [0, 1]}, nn.Bilinear(3, 2, 5)),
    "embedding": lambda: (nn.Embedding(7, 4), {("weight", 1): [0, 3]}, nn.Embedding(7, 2)),
    "bag": lambda: (nn.EmbeddingBag(7, 4), {("weight", 1): [0, 3]}, nn.EmbeddingBag(7, 2)),
    "batch norm": lambda: (
        nn.BatchNorm2d(4),
        {(n, 0): [0, 3] for n in ("weight", "bias", "running_mean", "running_var")},
        nn.BatchNorm2d(2),
    ),
    "batch norm without gains": lambda: (
        nn.BatchNorm1d(4, affine=False),
        {("running_mean", 0): [1], ("running_var", 0): [1]},
        nn.BatchNorm1d(1, affine=False),
    ),
    "instance norm": lambda: (
        nn.InstanceNorm2d(4, affine=True),
        {("weight", 0): [1, 2], ("bias", 0): [1, 2]},
        nn.InstanceNorm2d(2, affine=True),
    ),
    "group norm": lambda: (
        nn.GroupNorm(2, 6),
        {("weight", 0): [0, 2, 3, 4], ("bias", 0): [0, 2, 3, 4]},
        nn.GroupNorm(2, 4),
    ),
    "group norm, one channel each": lambda: (
        nn.GroupNorm(6, 6),
        {("weight", 0): [0, 2, 3], ("bias", 0): [0, 2, 3]},
        nn.GroupNorm(3, 3),
    ),
    "layer norm": lambda: (
        nn.LayerNorm((3, 4)),
        {("weight", 1): [0, 3], ("bias", 1): [0, 3]},
        nn.LayerNorm((3, 2)),
    ),
    "rms norm": lambda: (nn.RMSNorm(4), {("weight", 0): [0, 3]}, nn.RMSNorm(2)),
    "prelu": lambda: (nn.PReLU(4), {("weight", 0): [0, 3]}, nn.PReLU(2)),
    "lstm": lambda: (nn.LSTM(4, 3), {("weight_ih_l0", 1): [0, 3]}, nn.LSTM(2, 3)),
    "gru cell": lambda: (nn.GRUCell(4, 3), {("weight_ih", 1): [0, 3]}, nn.GRUCell(2, 3)),
}


def attributes(module: nn.Module) -> dict[str, object]:
    return {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple)}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_attributes_become_those_of_a_module_built_that_small(row: Callable[[], Row]) -> None:
    module, keep, expected = row()
    parameters = dict(module.named_parameters())
    shrink_modules(module, {axis: torch.tensor(index) for axis, index in keep.items()})
    assert attributes(module) == attributes(expected)
    for name, p in module.named_parameters():
        assert p is parameters[name]
        assert p.shape == expected.get_parameter(name).shape


ONLY_SHAPES_DIFFER = {"depthwise, fewer outputs each", "grouped, a whole group"}


@pytest.mark.parametrize("name", sorted({*ROWS} - ONLY_SHAPES_DIFFER))
def test_shapes_alone_tell_both_ways_but_for_conv_groups_that_went_in_part(name: str) -> None:
    module, keep, small = ROWS[name]()
    big = attributes(module)
    # A depthwise layer of one channel cannot be told from an ordinary one.
    for source, expected in ((small, attributes(small)), (ROWS[name]()[0], big)):
        held = dict(source.named_parameters()) | dict(source.named_buffers())
        with torch.no_grad():
            for n, t in [*module.named_parameters(), *module.named_buffers()]:
                t.set_(held[n].detach().clone())
        changed = follow_shapes(module)
        assert attributes(module) == expected
        assert all(attributes(module)[k] == new for k, (_, new) in changed.items())
    assert keep


def test_removing_unequally_from_conv_groups_is_an_error() -> None:
    for module in (nn.Conv2d(4, 8, 1, groups=2, bias=False), nn.GroupNorm(2, 8)):
        with pytest.raises(UncoupledChannelsError, match="2 groups over 8 channels, of which 5 stay"):
            shrink_modules(module, {("weight", 0): torch.tensor([0, 1, 2, 3, 4])})


def test_modules_without_tensors_and_without_rows_are_left_alone() -> None:
    for module in (
        nn.BatchNorm2d(3, affine=False, track_running_stats=False),
        nn.GroupNorm(1, 3, affine=False),
        nn.ReLU(),
    ):
        before = attributes(module)
        assert follow_shapes(module) == {}
        assert attributes(module) == before


def test_subclasses_inherit_the_row_of_their_base() -> None:
    class Mine(nn.Conv2d):
        pass

    module = Mine(3, 4, 1)
    shrink_modules(module, {("weight", 0): torch.tensor([1]), ("bias", 0): torch.tensor([1])})
    assert module.out_channels == 1


def test_a_registered_container_follows_after_what_it_contains() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.width = nn.Linear(3, 4), 4

    class Child(Gate):
        pass

    seen = []

    def rule(module: nn.Module, keep: object) -> dict[str, object]:
        seen.append(keep)
        return {"width": module.inner.out_features}

    register_attributes(Gate, rule)
    model = nn.Sequential(Child(), nn.Linear(4, 1))
    index = torch.tensor([0, 3])
    shrink_modules(model, {("0.inner.weight", 0): index, ("0.inner.bias", 0): index, ("1.weight", 1): index})
    assert model[0].width == 2
    assert seen == [{("inner.weight", 0): index, ("inner.bias", 0): index}]


class Double(nn.Module):
    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        Double.calls += 1
        return 2 * weight


def parametrized(conv: nn.Conv2d) -> list[str]:
    parametrize.register_parametrization(conv, "weight", Double())
    return ["parametrizations.weight.original"]


def weight_normalized(conv: nn.Conv2d) -> list[str]:
    parametrizations.weight_norm(conv)
    return ["parametrizations.weight.original0", "parametrizations.weight.original1"]


def masked(conv: nn.Conv2d) -> list[str]:
    prune.l1_unstructured(conv, "weight", 0.3)
    return ["weight_orig", "weight_mask"]


def old_weight_norm(conv: nn.Conv2d) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(conv)
    return ["weight_g", "weight_v"]


@pytest.mark.parametrize("reparametrize", [parametrized, weight_normalized, masked, old_weight_norm])
def test_reparametrized_layers_follow_without_running_their_parametrization(
    reparametrize: Callable[[nn.Conv2d], list[str]],
) -> None:
    conv = nn.Conv2d(3, 4, 3)
    names = reparametrize(conv)
    model = nn.Sequential(conv)
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)[:, [0, 3]]
    calls = Double.calls
    shrink_modules(model, {(f"0.{n}", 0): torch.tensor([0, 3]) for n in [*names, "bias"]})
    assert Double.calls == calls
    assert (conv.out_channels, conv.in_channels) == (2, 3)
    torch.testing.assert_close(model(x), expected)


def test_a_parametrization_that_hides_the_shape_is_an_error() -> None:
    conv = nn.Conv2d(3, 4, 1)
    del conv.weight
    conv.weight = torch.zeros(4, 3, 1, 1)
    with pytest.raises(UncoupledChannelsError, match="register_attributes"):
        follow_shapes(conv)
