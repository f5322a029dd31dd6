"""The activation criteria are statistics of what the consumers of a channel receive."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scores.gates import assert_same, case, scored, train_batch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import conv

from lightning_taylor.criteria.activations import ActivationMean, ActivationStd, APoZ
from lightning_taylor.criteria.base import Criterion
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.trace.api import trace_channels

NETS = ("vgg", "line", "volume", "residual", "concat", "option_a", "decoder", "spread")
CRITERIA = (ActivationMean(), ActivationStd(), APoZ())


def received(model: nn.Module, graph: ChannelGraph, x: Tensor) -> dict[str, list[list[list[Tensor]]]]:
    """Group -> channel -> layer that reads it -> one example after the other: every value that it receives."""
    inputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [
        module.register_forward_pre_hook(lambda _m, args, name=name: inputs.update({name: args[0].detach()}))
        for name, module in modules.items()
        if name
    ]
    model(x)
    for handle in handles:
        handle.remove()
    found: dict[str, list[list[list[Tensor]]]] = defaultdict(list)
    for group in graph.groups.values():
        for c in range(group.size):
            layers = []
            for s in group.of(Role.CONSUMER):
                entry = inputs[s.tensor.removesuffix(".weight")]
                layers.append([torch.cat([example[i].flatten() for i in s.index[c].tolist()]) for example in entry])
            found[group.name].append(layers)
    return found


def averaged(of: Callable[[Tensor], Tensor], layers: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack([of(values).mean() for values in layer]).mean() for layer in layers]).mean()


def reference(criterion: Criterion, model: nn.Module, graph: ChannelGraph, x: Tensor) -> dict[str, Tensor]:
    def score(layers: list[list[Tensor]]) -> Tensor:
        if isinstance(criterion, APoZ):
            return averaged(lambda values: (values > 0).double(), layers)
        mean = averaged(lambda values: values, layers)
        if isinstance(criterion, ActivationMean):
            return mean
        return averaged(lambda values: (values - mean).square(), layers).sqrt()

    return {
        name: torch.stack([score(layers) for layers in channels])
        for name, channels in received(model, graph, x).items()
    }


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_scores_equal_the_loop_over_received_values(criterion: Criterion, name: str) -> None:
    model, graph, x = case(name, examples=5)
    assert graph.groups
    expected = reference(criterion, model, graph, x)
    assert_same(scored(criterion, model, graph, x[:2], x[2:3], x[3:]), expected)


def test_the_spread_is_that_of_all_values_about_one_mean() -> None:
    model, graph, x = case("vgg", examples=6)
    maps: list[Tensor] = []
    model[4].register_forward_pre_hook(lambda _m, args: maps.append(args[0].detach()))
    found = scored(ActivationStd(), model, graph, x)
    values_CX = maps[0].transpose(0, 1).flatten(1)
    assert_same({"0": found["0"]}, {"0": values_CX.std(1, correction=0)})


def test_a_small_spread_about_a_large_mean_survives_single_precision() -> None:
    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, 4), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) + 1000).mean((2, 3))

    model, x = Offset(), torch.randn(3, 3, 8, 8)
    graph = trace_channels(model, x)
    expected = (model.stem(x).detach() + 1000).double().transpose(0, 1).flatten(1).std(1, correction=0)
    found = scored(ActivationStd(), model, graph, x)["stem"]
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=0)


def test_passes_without_gradients_do_not_count() -> None:
    model, graph, x = case("residual")
    scorer = ActivationMean().scorer(model, graph)
    with torch.no_grad():
        model(100 * x)
    train_batch(model, scorer, x)
    scorer.close()
    model(100 * x)
    assert_same(scorer.scores(), scored(ActivationMean(), model, graph, x))


def test_a_frozen_part_is_scored_all_the_same() -> None:
    model, graph, x = case("vgg")
    expected = scored(APoZ(), model, graph, x)
    for p in model[:5].parameters():
        p.requires_grad_(False)
    assert_same(scored(APoZ(), model, graph, x), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_counted_once(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = conv(3, 6), nn.Sequential(conv(6, 5), nn.ReLU(), conv(5, 4)), conv(4, 2)
            self.checkpointed = False

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x = checkpoint(self.body, x, use_reentrant=reentrant) if self.checkpointed else self.body(x)
            return self.head(F.relu(x)).mean((2, 3))

    model, x = Net().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    graph = trace_channels(model, x)
    plain = scored(ActivationStd(), model, graph, x)
    model.checkpointed = True
    assert_same(scored(ActivationStd(), model, graph, x), plain)


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_a_batch_that_is_not_finite_is_dropped(criterion: Criterion) -> None:
    model, graph, x = case("vgg")
    broken = torch.full_like(x, float("nan"))
    assert_same(scored(criterion, model, graph, x, broken), scored(criterion, model, graph, x))


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_half_gathered_statistics_go_on_where_they_were(criterion: Criterion) -> None:
    model, graph, x = case("concat", examples=4)
    first, second = criterion.scorer(model, graph), None
    train_batch(model, first, x[:3])
    first.close()
    second = criterion.scorer(model, graph, event=1)
    second.load_state(first.state())
    train_batch(model, second, x[3:])
    second.close()
    whole = scored(criterion, model, graph, x[:3], x[3:])
    assert all(torch.equal(second.scores()[name], score_C) for name, score_C in whole.items())
    one, other = (criterion.scorer(model, graph) for _ in range(2))
    one.close()
    train_batch(model, other, x[3:])
    other.close()
    one.load_state(one.merge_states([first.state(), other.state()]))
    assert_same(one.scores(), whole)


def test_statistics_of_other_widths_are_refused() -> None:
    model, graph, _ = case("vgg")
    scorer = ActivationStd().scorer(model, graph)
    state = {name: tensor[:, 1:] for name, tensor in scorer.state().items()}
    with pytest.raises(ValueError, match="24 channels in its groups"):
        scorer.load_state(state)
    scorer.close()


def test_windows_folded_into_the_batch_are_averaged_within_their_example() -> None:
    net = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    graph = trace_channels(net, torch.randn(1, 3, 8, 8))
    x = torch.randn(12, 3, 8, 8, dtype=torch.float64)
    scorer = ActivationMean().scorer(net, graph)
    net(x)
    scorer.end_batch(examples=3)
    scorer.close()
    assert_same(scorer.scores(), scored(ActivationMean(), net, graph, x))


def test_nothing_is_left_on_the_model_and_copies_carry_nothing() -> None:
    model, graph, x = case("residual")
    before = {name: len(m._forward_pre_hooks) for name, m in model.named_modules()}
    scorer = APoZ().scorer(model, graph)
    twin = copy.deepcopy(model)
    train_batch(twin, APoZ().scorer(twin, graph), x)
    assert scorer.scores() == {}
    scorer.close()
    assert before == {name: len(m._forward_pre_hooks) for name, m in model.named_modules()}


def test_a_paused_scorer_sees_nothing() -> None:
    model, graph, x = case("vgg")
    scorer = ActivationMean().scorer(model, graph)
    scorer.pause()
    train_batch(model, scorer, x)
    assert scorer.scores() == {}
    scorer.resume()
    train_batch(model, scorer, x)
    scorer.close()
    assert set(scorer.scores()) == set(graph.groups)
