"""``Taylor`` is the absolute derivative of each example's loss by a gate at the consumers' inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scores.gates import assert_same, case, contributions, scored, train_batch
from torch import Tensor, nn
from zoo import NETS, conv

from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.normalize import normalize
from lightning_taylor.trace.api import trace_channels

UNWATCHED = {"shared": {"stem"}}
"""Groups of the zoo that a bare parameter reads."""

UNREACHED = {"auxiliary": {"side"}}
"""Groups of the zoo that only the training path reads; the gates are checked in evaluation mode."""


SHARED = {"windows": {"second.cpb_mlp.0"}}
"""Groups whose reader runs once for all examples (a table of positions): no example has a part of its own in it."""


def reference(model: nn.Module, graph: ChannelGraph, x: Tensor) -> dict[str, Tensor]:
    return {name: contributions(model, graph, name, x).abs().mean(0) for name in graph.groups}


@pytest.mark.parametrize("name", NETS)
def test_scores_equal_the_gates_of_single_examples(name: str) -> None:
    model, graph, x = case(name)
    found = scored(Taylor(), model, graph, x)
    missing = UNWATCHED.get(name, set()) | UNREACHED.get(name, set()) | SHARED.get(name, set())
    found = {group: score_C for group, score_C in found.items() if group not in SHARED.get(name, set())}
    assert graph.groups
    assert_same(found, {k: v for k, v in reference(model, graph, x).items() if k not in missing})


@pytest.mark.parametrize("name", ["vgg", "residual", "concat", "option_a", "decoder"])
def test_the_absolute_value_sits_where_it_is_asked_for(name: str) -> None:
    model, graph, x = case(name, examples=5)
    batches = (x[:2], x[2:])
    signed = {group: contributions(model, graph, group, x) for group in graph.groups}
    for absolute, expected in {
        "example": {g: v_NC.abs().mean(0) for g, v_NC in signed.items()},
        "batch": {g: (v_NC[:2].sum(0).abs() + v_NC[2:].sum(0).abs()) / 5 for g, v_NC in signed.items()},
        "window": {g: v_NC.mean(0).abs() for g, v_NC in signed.items()},
    }.items():
        found = scored(Taylor(absolute=absolute), model, graph, *batches)  # type: ignore[arg-type]
        assert_same(found, {g: expected[g] for g in found})
        assert set(found) == set(graph.groups)


@pytest.mark.parametrize("name", ["vgg", "residual", "concat", "decoder"])
def test_batches_are_averaged_by_their_examples(name: str) -> None:
    model, graph, x = case(name, examples=7)
    found = scored(Taylor(), model, graph, x[:3], x[3:6], x[6:])
    expected = reference(model, graph, x)
    assert_same(found, {k: expected[k] for k in found})


def test_a_bare_parameter_is_reported_and_not_scored() -> None:
    model, graph, x = case("shared")
    scorer = Taylor().scorer(model, graph)
    train_batch(model, scorer, x)
    scorer.close()
    assert set(scorer.unscorable) == {"stem"}
    assert "'matrix'" in scorer.unscorable["stem"]
    assert scorer.scores() == {}


def test_tied_layers_are_all_watched() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.other, self.head = (nn.Linear(i, o) for i, o in ((3, 5), (5, 5), (5, 5), (5, 2)))
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.other(F.relu(self.one(F.relu(self.stem(x)))))))

    model, x = Tied().double(), torch.randn(4, 3, dtype=torch.float64)
    graph = trace_channels(model, x)
    assert graph.groups
    assert_same(scored(Taylor(), model, graph, x), reference(model, graph, x))


def test_mean_over_positions_is_the_papers_feature_map_after_l2() -> None:
    net = nn.Sequential(
        conv(3, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 4)
    ).double()
    x, target = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(4, (6,))
    graph = trace_channels(net, x)
    scorer = Taylor(positions="mean").scorer(net, graph)
    maps: dict[str, Tensor] = {}

    def keep(name: str, out: Tensor) -> None:
        out.retain_grad()
        maps[name] = out

    for name, relu in (("0", net[1]), ("3", net[4])):
        relu.register_forward_hook(lambda _m, _a, out, name=name: keep(name, out))
    F.cross_entropy(net(x), target).backward()
    scorer.end_batch(examples=6)
    expected = {name: torch.mul(z, z.grad).mean((2, 3)).abs().mean(0).detach() for name, z in maps.items()}
    assert_same(normalize(scorer.scores(), "l2"), normalize(expected, "l2"))
    # The map of layer 3 is not pooled before its consumer: there even the scale is that of the paper, but for 1/N.
    assert_same({"3": scorer.scores()["3"]}, {"3": 6 * expected["3"]})


def test_two_sizes_of_one_group_are_averaged_each_over_its_own_positions() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fine, self.coarse = conv(3, 4), conv(4, 2), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.fine(x).mean((2, 3)) + self.coarse(F.avg_pool2d(x, 4)).square().mean((2, 3))

    net = Forked().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace_channels(net, x)
    fine = F.relu(net.stem(x)).detach().requires_grad_()
    coarse = F.avg_pool2d(fine.detach(), 4).requires_grad_()
    out = net.fine(fine).mean((2, 3)) + net.coarse(coarse).square().mean((2, 3))
    out.cos().sum(1).mean().backward()
    expected = sum(2 * torch.mul(z, z.grad).mean((2, 3)) for z in (fine, coarse))
    assert isinstance(expected, Tensor)
    scorer = Taylor(positions="mean").scorer(net, graph)
    net(x).cos().sum(1).mean().backward()
    scorer.end_batch(examples=2)
    assert_same(scorer.scores(), {"stem": expected.abs().mean(0).detach()})
    scorer.close()


def test_windows_folded_into_the_batch_belong_to_their_example() -> None:
    class Clips(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x_NWKHW: Tensor) -> Tensor:
            return self.net(x_NWKHW.flatten(0, 1)).unflatten(0, x_NWKHW.shape[:2]).mean(1)

    net = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    graph = trace_channels(net, torch.randn(1, 3, 8, 8))
    x = torch.randn(3, 4, 3, 8, 8, dtype=torch.float64)
    model = Clips(net)
    found = scored(Taylor(), model, _inside(graph, "net"), x)
    assert_same(found, reference(model, _inside(graph, "net"), x))


def _inside(graph: ChannelGraph, prefix: str) -> ChannelGraph:
    """The same graph, seen from a module around the model."""
    groups = {
        name: replace(group, slices=tuple(replace(s, tensor=f"{prefix}.{s.tensor}") for s in group.slices))
        for name, group in graph.groups.items()
    }
    return replace(graph, groups=groups, shapes={f"{prefix}.{name}": shape for name, shape in graph.shapes.items()})


def test_gradient_scale_cancels() -> None:
    model, graph, x = case("residual")
    plain = scored(Taylor(), model, graph, x)
    scorer = Taylor().scorer(model, graph)
    for scale in (1024.0, 0.25):
        train_batch(model, scorer, x, scale=scale)
    scorer.close()
    assert_same(scorer.scores(), plain)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_dropped_and_the_others_kept(bad: float) -> None:
    model, graph, x = case("vgg")
    broken = x.clone()
    broken[0, 0, 0, 0] = bad
    assert_same(scored(Taylor(), model, graph, x[:2], broken, x[2:]), scored(Taylor(), model, graph, x))


def test_a_dropped_batch_leaves_no_trace() -> None:
    model, graph, x = case("vgg")
    scorer = Taylor().scorer(model, graph)
    model(10 * x).sum().backward()
    scorer.drop_batch()
    train_batch(model, scorer, x)
    scorer.close()
    assert_same(scorer.scores(), scored(Taylor(), model, graph, x))


def test_a_frozen_part_has_no_score_until_it_is_unfrozen() -> None:
    model, graph, x = case("vgg")
    model[:5].requires_grad_(False)
    scorer = Taylor().scorer(model, graph)
    train_batch(model, scorer, x)
    assert set(scorer.scores()) == {"8"}
    assert set(graph.groups) == {"0", "4", "8"}
    model.requires_grad_(True)
    train_batch(model, scorer, 2 * x)
    scorer.close()
    fresh = scored(Taylor(), model, graph, 2 * x)
    assert_same({k: scorer.scores()[k] for k in ("0", "4")}, {k: fresh[k] for k in ("0", "4")})


def test_no_batch_means_no_scores() -> None:
    model, graph, _ = case("vgg")
    scorer = Taylor().scorer(model, graph)
    scorer.end_batch(examples=3)
    assert scorer.scores() == {}
    scorer.close()


def test_half_gathered_scores_go_on_where_they_were() -> None:
    model, graph, x = case("concat", examples=4)
    first = Taylor().scorer(model, graph)
    train_batch(model, first, x[:3])
    first.close()
    second = Taylor().scorer(model, graph, event=1)
    second.load_state(first.state())
    train_batch(model, second, x[3:])
    second.close()
    whole = scored(Taylor(), model, graph, x[:3], x[3:])
    assert all(torch.equal(second.scores()[name], score_C) for name, score_C in whole.items())


def test_scores_of_other_widths_are_refused() -> None:
    model, graph, _ = case("vgg")
    scorer = Taylor().scorer(model, graph)
    state = {name: tensor[1:] for name, tensor in scorer.state().items()}
    with pytest.raises(ValueError, match="channels in its groups"):
        scorer.load_state(state)
    scorer.close()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="'max'"):
        Taylor(positions="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'sum'"):
        Taylor(absolute="sum")  # type: ignore[arg-type]
