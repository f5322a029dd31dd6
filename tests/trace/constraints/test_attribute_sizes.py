"""Numbers by which a module's code takes channels apart: they follow what is left, or the channels stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
import zoo_grids
import zoo_sizes
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.checkpoint.widths import fit_shapes, widths_of
from lightning_taylor.graph.types import LinkedAttribute
from lightning_taylor.trace.constraints.attribute_sizes import WHOLE, choices

NUMBERS = {"listed": "sizes", "rest": "sizes", "sliced": "worked", "halved": "expanded", "spelled": "hidden"}


def numbers(model: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if type(value) in (int, list, tuple)}


@pytest.mark.parametrize("name", zoo_sizes.SIZES)
def test_every_channel_can_go_and_only_the_numbers_that_count_them_follow(name: str) -> None:
    model, x = zoo.build(name)
    graph, before = trace_channels(model, x), numbers(model)
    assert set(graph.frozen) == {"head"}
    prune_channels(model, graph, graph.sample(0.5))
    assert {n for n, value in numbers(model).items() if value != before[n]} == {NUMBERS[name]}
    assert type(vars(model)[NUMBERS[name]]) is type(before[NUMBERS[name]])
    assert model(x).isfinite().all()


@pytest.mark.parametrize("name", zoo_sizes.SIZES)
def test_a_fresh_model_takes_the_numbers_from_the_checkpoint_s_shapes(name: str) -> None:
    model, x = zoo.build(name)
    graph = trace_channels(model, x)
    smaller = prune_channels(model, graph, {name: [0] for name in list(graph.groups)[-1:]})
    fresh, _ = zoo.build(name)
    fit_shapes(fresh, model.state_dict(), widths_of(smaller))
    fresh.load_state_dict(model.state_dict())
    assert numbers(fresh) == numbers(model)
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_parts_may_lose_differently() -> None:
    model, x = zoo.build("listed")
    graph = trace_channels(model, x)
    by_size = {group.size: name for name, group in graph.groups.items()}
    prune_channels(model, graph, {by_size[5]: [1, 2, 3], by_size[4]: [0]})
    assert vars(model)["sizes"] == [2, 3, 3]


class Fixed(zoo_sizes.Sliced):
    """The number of classes is as large as a number that is written out."""

    def __init__(self) -> None:
        super().__init__()
        del self.worked

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.cat([self.partial(x[:, :3]), x[:, 3:]], 1)
        return self.head(torch.relu(x).mean((2, 3)))


def test_a_number_that_is_as_large_by_chance_stays_and_so_do_the_channels() -> None:
    model = Fixed().double()
    graph = trace_channels(model, torch.randn(1, 3, 8, 8).double())
    assert not graph.followers
    assert not graph.groups
    assert "taken apart at fixed positions" in graph.frozen["stem"]


def test_a_list_of_exactly_these_sizes_is_sure_and_of_equal_numbers_one_at_a_time_is_tried() -> None:
    assert choices([5, 3], 8, {"sizes": (5, 3), "n": 5}) == (({"sizes[0]": 0, "sizes[1]": 1},), True)
    assert choices([5, 3], 8, {"last": [torch.ones(5), torch.ones(3)]}) == ((), False)
    assert choices([5, 3], 8, {"classes": 5, "dim": 5}) == (({"dim": 0}, {"classes": 0}), False)
    assert choices([4, 4], 8, {"expanded": 8}) == (({"expanded": WHOLE},), False)
    assert choices([4, 4, 4], 12, {"n": 4}) == (({"n": 0}, {"n": 2}), False)
    assert choices([5, 3], 8, {"on": True, "one": 1, "other": 7}) == ((), False)


def test_a_follower_counts_the_rest() -> None:
    follower = LinkedAttribute("block", "sizes[0]", ("stem.weight", 0), 7, 7, (("deep.weight", 0),))
    assert follower.axes == (("stem.weight", 0), ("deep.weight", 0))


def test_a_vision_transformer_loses_channels_of_its_residual_stream_where_norms_may_change() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=12, num_classes=3).double()
    x = torch.randn(2, 3, 16, 16).double()
    graph = trace_channels(model, x, allow_inexact_norms=True)
    assert graph.groups["conv_proj"].size == 16
    prune_channels(model, graph, {"conv_proj": [0, 3, 5]})
    assert model.hidden_dim == 13
    assert model(x).isfinite().all()


class Alike(nn.Module):
    """Two layers are as wide by chance; a number counts the channels of the second one only."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.first, self.second = 6, nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, part = self.first(x).chunk(2, 1)
        _, half = self.second(part).split(self.width // 2, 1)
        return self.head(half.mean((2, 3)))


def test_a_number_follows_the_layer_that_it_counts_not_another_of_the_same_width() -> None:
    model = Alike().double()
    graph = trace_channels(model, torch.randn(1, 3, 8, 8).double())
    assert {(f.attribute, f.axis) for f in graph.followers} == {("width", ("second.weight", 0))}


class Tokens(zoo_grids.Heads):
    """Four heads, and four classes, which nothing in the forward pass says."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = self.count


def test_a_number_whose_name_says_that_it_counts_something_else_stays() -> None:
    model = Tokens().double()
    graph = trace_channels(model, torch.randn(1, 3, 12, 12).double())
    assert {f.attribute for f in graph.followers} == {"count"}
