from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
import zoo
from exactness import difference, masked, outputs, sliced
from torch import Tensor, nn
from torchvision.ops import roi_align

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.trace.api import trace_channels

EXPECTED = {
    "vgg": {"0": 6, "4": 8, "8": 10},
    "line": {"0": 6, "2": 8},
    "volume": {"0": 6, "4": 5},
    "residual": {"stem.0": 8, "one.0": 6, "project": 12, "two.0": 10},
    "concat": {"a": 6, "b": 4, "c": 5},
    "inverted": {"stem": 8, "expand.0": 16, "squeeze": 4},
    "option_a": {"stem": 8, "a": 16},
    "bare": {"stem": 8},
    "shared": {"stem": 8},
    "halves": {"stem": 6, "gated": 8},
    "auxiliary": {"stem": 8, "body": 6, "side": 4},
    "decoder": {"down": 6, "deep": 8, "up": 5, "fuse": 2},
    "spread": {"stem": 8, "body": 6},
    "hard_coded": {"free": 7, "b": 6},
    "grouped": {"stem": 4, "squeeze": 4, "wide": 6},
    "shuffled": {"stem": 8, "one": 6},
    "chunks": {"stem": 4, "one": 6, "pieces": 5},
    "listed": {"stem": 3, "stem/2": 4, "stem/3": 5},
    "rest": {"stem": 7, "stem/2": 3, "body": 6},
    "sliced": {"stem": 7, "stem/2": 3},
    "halved": {"stem": 4, "work": 5},
    "spelled": {"stem": 8},
    "heads": {"patch": 8, "qkv": 4, "out": 6},
    "heads_written_out": {"patch": 8, "qkv": 4, "out": 6},
    "heads_inside": {"patch": 8, "qkv": 4, "out": 6},
    "heads_separate": {"patch": 6, "query": 4},
    "multihead": {"layer.self_attn": 2, "layer.linear1": 10, "attention": 4, "attention.out_proj": 8},
    "windows": {
        "stem": 6,
        "first.qkv": 3,
        "first.proj": 6,
        "second.cpb_mlp.0": 512,
        "second.cpb_mlp.2": 3,
        "second.proj": 6,
    },
    "heads_pooled": {"patch": 8, "qkv": 4},
    "group_normed": {"stem": 4, "inner": 8},
    "group_normed_parts": {"enc": 2, "down": 8, "up.conv": 2},
}


@cache
def graph_of(name: str) -> ChannelGraph:
    """Trace a net of the zoo, once."""
    return trace_channels(*zoo.build(name))


@pytest.mark.parametrize("name", zoo.NETS)
def test_finds_the_groups_that_the_structure_has(name: str) -> None:
    graph = graph_of(name)
    assert {group.name: group.size for group in graph.groups.values()} == EXPECTED[name]


@pytest.mark.parametrize("fraction", [0.25, 0.75])
@pytest.mark.parametrize("name", zoo.NETS)
def test_sliced_equals_masked(name: str, fraction: float) -> None:
    model, x = zoo.build(name)
    graph = graph_of(name)
    for seed in range(4):
        remove = graph.sample(fraction, torch.Generator().manual_seed(seed))
        expected = outputs(masked(model, graph, remove), x)
        assert difference(expected, outputs(sliced(model, graph, remove), x)) < 1e-10
        assert difference(expected, outputs(model, x)) > 1e-6, "the removal must matter for the comparison to count"


@pytest.mark.parametrize("name", zoo.NETS)
def test_every_layer_is_removable_or_has_a_reason(name: str) -> None:
    graph = graph_of(name)
    for layer, axis in graph.layers.items():
        carried = {int(i) for g in graph.groups.values() for s in g.slices if s.axis == axis for i in s.index.flatten()}
        assert carried == set(range(graph.width(axis))) or graph.frozen[layer]


@pytest.mark.parametrize("name", zoo.NETS)
def test_a_trace_leaves_nothing_behind(name: str) -> None:
    model, x = zoo.build(name)
    model.train()
    next(model.children()).eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    attributes = [set(vars(m)) for m in model.modules()]
    trace_channels(model, x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert attributes == [set(vars(m)) for m in model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.get_default_dtype() == torch.float32
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", zoo.NETS)
def test_the_graph_of_a_shrunk_model_is_the_shrunk_graph(name: str) -> None:
    model, x = zoo.build(name)
    graph = graph_of(name)
    remove = graph.sample(0.4, torch.Generator().manual_seed(1))
    shrunk, traced = graph.shrink(remove), trace_channels(sliced(model, graph, remove), x)
    assert shrunk.shapes == traced.shapes
    for group in traced.groups.values():
        twin = shrunk.groups[group.name]
        assert {(s.axis, s.role) for s in twin.slices} == {(s.axis, s.role) for s in group.slices}
        assert all(torch.equal(a.index, b.index) for a, b in zip(twin.slices, group.slices, strict=True))


@pytest.mark.parametrize("name", zoo.NETS)
def test_groups_shrink_one_after_the_other_as_all_at_once(name: str) -> None:
    graph = one_by_one = graph_of(name)
    remove = graph.sample(0.4, torch.Generator().manual_seed(2))
    for group, index in remove.items():
        one_by_one = one_by_one.shrink({group: index})
    at_once = graph.shrink(remove)
    assert one_by_one.shapes == at_once.shapes != graph.shapes
    for found, expected in zip(one_by_one.groups.values(), at_once.groups.values(), strict=True):
        for a, b in zip(found.slices, expected.slices, strict=True):
            assert (a.axis, a.role) == (b.axis, b.role)
            assert torch.equal(a.index, b.index)


def test_a_shrunk_graph_shares_the_groups_that_a_decision_does_not_touch() -> None:
    graph = trace_channels(*zoo.build("line"))
    keep, shrunk = graph.cut({"0": [0, 2]})
    assert keep.keys() == {s.axis for s in graph.groups["0"].slices}
    assert shrunk.groups["2"] is graph.groups["2"]
    assert shrunk.groups["0"].size == graph.groups["0"].size - 2


def test_a_zero_initialised_branch_does_not_hide_a_mistake() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = zoo.conv(3, 8), zoo.conv(8, 8), zoo.conv(8, 8)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            mean = self.a(x).cumsum(1) / torch.arange(1, 9).view(-1, 1, 1)[: x.shape[1]]
            return x.mean((1, 2, 3)) + self.gain * self.b(mean).mean((1, 2, 3))

    graph = trace_channels(Hidden(), torch.randn(1, 3, 8, 8))
    assert "a" not in graph.groups
    assert "cumsum" in graph.frozen["a"]


def test_code_that_assumes_a_width_is_frozen_with_the_error_it_would_raise() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = zoo.conv(3, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.stem(x).view(-1, 8, x.shape[2] * x.shape[3]).mean(2))

    graph = trace_channels(Folded(), torch.randn(1, 3, 8, 8))
    assert "assumes its width" in graph.frozen["stem"]
    assert "shape '[-1, 8, 64]'" in graph.frozen["stem"]


PICKING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "split_with_sizes": lambda v: v.split([5, 1], 1)[0],
    "slice": lambda v: torch.cat([v[:, :3], v[:, 3:].relu()], 1),
    "select": lambda v: torch.stack([v.select(1, 4), v.select(1, 2)], 1),
    "index": lambda v: v[:, torch.tensor([2, 0, 1])],
    "roll": lambda v: v.roll(1, 1),
}


@pytest.mark.parametrize("name", PICKING)
def test_channels_that_code_counts_by_position_stay(name: str) -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = zoo.conv(3, 6), nn.LazyConv2d(4, 1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.mix(PICKING[name](self.stem(x))).amax((2, 3)))

    model = Picks()
    model(torch.randn(1, 3, 8, 8))
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    assert set(graph.groups) == {"mix"}
    assert f"at fixed positions by {name}" in graph.frozen["stem"]


def test_padding_channels_stay_and_the_others_go() -> None:
    graph = trace_channels(*zoo.build("option_a"))
    assert "8 of 16 channels" in graph.frozen["b"]
    assert "padding" in graph.frozen["b"]
    roles = {(s.tensor, s.role) for s in graph.groups["stem"].slices}
    assert ("b.weight", Role.PRODUCER) in roles
    assert ("head.weight", Role.CONSUMER) in roles


def test_normalisation_over_channels_freezes_with_the_reason() -> None:
    model = nn.Sequential(zoo.conv(3, 8), nn.GroupNorm(1, 8), nn.ReLU(), zoo.conv(8, 6), nn.ReLU(), zoo.conv(6, 2))
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    assert list(graph.groups) == ["3"]
    assert "statistics run over the channels" in graph.frozen["0"]


def test_ignored_layers_keep_their_outputs() -> None:
    model, x = zoo.build("residual")
    graph = trace_channels(model, x, ignore=["two", "*.nothing", "stem"][:1])
    assert set(graph.groups) == {"stem.0", "one.0"}
    assert "ignored by the pattern 'two'" in graph.frozen["two.0"]


@pytest.mark.parametrize("persistent", [True, False])
def test_channels_along_a_buffer_that_no_checkpoint_holds_stay(persistent: bool) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)
            self.register_buffer("scale", torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1), persistent=persistent)
            self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.one(x - self.mean) * self.scale).relu().mean((2, 3)))

    graph = trace_channels(Scaled(), torch.rand(2, 3, 8, 8))
    assert set(graph.groups) == ({"one", "two"} if persistent else {"two"})
    assert persistent or "the buffer scale, which no checkpoint holds" in graph.frozen["one"]


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    model, x = zoo.build("residual")
    with pytest.raises(ValueError, match=r"'layer9\*' matches no layer; the layers are stem\.0"):
        trace_channels(model, x, ignore=["layer9*"])


def test_several_inputs_and_keyword_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = zoo.conv(3, 4), zoo.conv(1, 4), zoo.conv(4, 2)

        def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.head(torch.relu(self.a(x) + self.b(y)))}

    inputs = {"x": torch.randn(2, 3, 8, 8), "y": torch.randn(2, 1, 8, 8)}
    assert {n: g.size for n, g in trace_channels(Two(), inputs).groups.items()} == {"a": 4}


def test_activations_kept_on_the_module_do_not_stop_the_copy() -> None:
    model, x = zoo.build("vgg")
    model.last = [model(x)]  # type: ignore[assignment]
    assert trace_channels(model, x).groups


def test_scripted_models_are_refused_by_name() -> None:
    model, x = zoo.build("vgg")
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of newer versions: it is deprecated
        scripted = torch.jit.trace(model, x)
    with pytest.raises(UnsupportedModelError, match="scripted"):
        trace_channels(nn.Sequential(scripted), x)


def test_a_forward_pass_that_raises_is_reported() -> None:
    model, _ = zoo.build("vgg")
    with pytest.raises(UnsupportedModelError, match=r"forward pass of Sequential raised RuntimeError"):
        trace_channels(model, torch.randn(1, 5, 12, 12))


def test_modules_that_no_path_reaches_are_listed() -> None:
    model, x = zoo.build("residual")
    model.spare = zoo.conv(8, 8).double()
    assert trace_channels(model, x).unseen == ("spare",)


class Split(nn.Module):
    """Two halves of one layer, each with a reader of its own: they have to stay as wide as each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other = zoo.conv(3, 8), zoo.conv(4, 6), zoo.conv(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        return self.head((torch.relu(self.one(a)) + torch.relu(self.other(b))).mean((2, 3)))


def test_halves_lose_the_same_entries() -> None:
    graph = trace_channels(Split(), torch.randn(1, 3, 8, 8))
    assert set(graph.groups) == {"stem", "one"}
    assert next(s.index.tolist() for s in graph.groups["stem"].slices) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_what_meets_a_grouped_convolution_goes_with_its_groups() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.grouped, self.gate = zoo.conv(3, 8), zoo.conv(8, 8, groups=4), zoo.conv(3, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.grouped(self.stem(x)) * torch.sigmoid(self.gate(x))).mean((2, 3)))

    graph = trace_channels(Gated(), torch.randn(1, 3, 8, 8))
    assert {name: group.size for name, group in graph.groups.items()} == {"stem": 4}
    gate = next(s for s in graph.groups["stem"].slices if s.tensor == "gate.weight")
    assert gate.index.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


class Ranked(nn.Module):
    """Detections: an evaluation path whose ranking hangs on the last digit, a training path that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = zoo.conv(3, 8), zoo.conv(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.head(torch.relu(self.stem(x))).flatten(1)
        return out.mean(1) if self.training else (out * 1e15).sin()


def test_an_output_that_a_last_digit_turns_over_proves_nothing_while_another_does() -> None:
    graph = trace_channels(Ranked(), torch.randn(1, 3, 8, 8))
    assert {name: group.size for name, group in graph.groups.items()} == {"stem": 8}


class Regions(nn.Module):
    """Two levels of one width, pooled over regions that the net itself proposes, gathered in one table."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.corner = zoo.conv(3, 8), zoo.conv(3, 8, stride=2), nn.Linear(8, 2)
        self.head = nn.Linear(8 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = [torch.relu(self.fine(x)), torch.relu(self.coarse(x))]
        corner = torch.sigmoid(self.corner(levels[0].mean((2, 3))))
        boxes = torch.cat([torch.zeros_like(corner[:, :1]), corner, corner + 4], dim=1)
        table = torch.zeros(2, levels[0].shape[1], 2, 2, dtype=x.dtype)
        for row, level in enumerate(levels):
            table[torch.tensor([row])] = roi_align(level, boxes, 2)
        return self.head(table.flatten(1))


def test_pooled_regions_keep_the_channels_of_their_maps_and_rows_of_a_table_are_of_one_width() -> None:
    model, x = zoo.randomize(Regions().double()), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    graph = trace_channels(model, x)
    assert {name: group.size for name, group in graph.groups.items()} == {"fine": 8}
    assert "coordinates of regions" in graph.frozen["corner"]
    remove = graph.sample(0.5, torch.Generator().manual_seed(0))
    assert difference(outputs(masked(model, graph, remove), x), outputs(sliced(model, graph, remove), x)) < 1e-10


def test_regions_of_the_input_are_nothing_to_follow() -> None:
    class Crops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.corner, self.body, self.head = nn.Linear(3, 2), zoo.conv(3, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            corner = torch.sigmoid(self.corner(x.mean((2, 3))))
            boxes = torch.cat([torch.zeros_like(corner[:, :1]), corner, corner + 4], dim=1)
            return self.head(torch.relu(self.body(roi_align(x, boxes, 4))).mean((2, 3)))

    assert set(trace_channels(Crops(), torch.randn(1, 3, 8, 8)).groups) == {"body"}


def test_a_head_that_has_nothing_to_work_on_in_one_path_says_nothing_there() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.norm = zoo.conv(3, 8), zoo.conv(8, 2), nn.BatchNorm2d(8)
            self.head, self.last = zoo.conv(8, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.stem(x).relu()
            found = x.new_zeros(len(x) if self.training else 0, *x.shape[1:])
            found[:] = x[: len(found)]
            return self.body(x), self.last(self.head(self.norm(found)).relu().mean((2, 3)))

    model, x = zoo.randomize(Idle().double()), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    graph = trace_channels(model, x)
    assert {group.name: group.size for group in graph.groups.values()} == {"stem": 8, "head": 6}


def test_queries_stay_for_the_reason_for_which_their_values_do() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.both, self.value = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 12)
            self.out = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch(x).relu().flatten(2).transpose(1, 2)
            q, k = self.both(x).view(len(x), -1, 2, self.both.out_features // 6, 3).permute(2, 0, 3, 1, 4)
            v = self.value(x).view(len(x), -1, 4, 3).transpose(1, 2)
            return self.out((torch.softmax(q @ k.transpose(2, 3), -1) @ v).transpose(1, 2).flatten(2).mean(1))

    graph = trace_channels(Fixed(), torch.randn(2, 3, 12, 12))
    assert set(graph.groups) == {"patch"}
    assert graph.frozen["both"] == graph.frozen["value"]
    assert "assumes its width" in graph.frozen["both"]


def test_a_call_without_an_example_is_traced_along() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.read = nn.Conv2d(3, 6, 1), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            none = x[x.flatten(1).sum(1) > 1e9]
            return self.read(self.make(x).relu().mean((2, 3))), self.read(self.make(none).relu().sum((0, 2, 3)))

    assert trace_channels(Detector(), torch.rand(2, 3, 4, 4)).groups["make"].size == 6
