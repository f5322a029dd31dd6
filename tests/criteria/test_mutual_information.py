"""``MutualInformation`` is the gain of a table of counts, over the examples that are kept."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fit.rank_launch import all_well, on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from scores.gates import assert_same, case, train_batch
from torch import Tensor, nn
from zoo import conv

from lightning_taylor.criteria.base import Scorer
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.formulas import information_gain
from lightning_taylor.trace.api import trace_channels


def entropy(values: list[object]) -> float:
    return -sum(n / len(values) * math.log(n / len(values)) for n in Counter(values).values())


def gain(values: list[float], labels: list[int], bins: int) -> float:
    """By the table of counts; a value's interval is how many of the edges do not exceed it."""
    ordered = sorted(values)
    edges = [ordered[min(math.ceil(q * len(values) / bins), len(values) - 1)] for q in range(1, bins)]
    cells: list[object] = [sum(edge <= value for edge in edges) for value in values]
    return entropy(cells) + entropy(list(labels)) - entropy(list(zip(cells, labels, strict=True)))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 3)), min_size=1, max_size=30),
    st.sampled_from([2, 4, 8]),
)
def test_the_gain_is_that_of_the_table_of_counts(pairs: list[tuple[int, int]], bins: int) -> None:
    values, labels = [float(v) for v, _ in pairs], [10 * label for _, label in pairs]
    found = information_gain(torch.tensor([values, values[::-1]]), torch.tensor(labels), bins=bins)
    expected = torch.tensor([gain(values, labels, bins), gain(values[::-1], labels, bins)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_channel_that_tells_the_label_gains_its_entropy_and_noise_little() -> None:
    label_N = torch.arange(400) % 4
    value_CN = torch.stack([label_N + 0.1 * torch.rand(400), torch.rand(400)])
    exact, noise = information_gain(value_CN, label_N, bins=4).tolist()
    assert exact == pytest.approx(math.log(4), abs=1e-5)
    assert noise < 9 / 800 * 3


def labelled(examples: int = 24) -> tuple[nn.Module, ChannelGraph, Tensor, Tensor]:
    model, graph, x = case("vgg", examples)
    return model, graph, x, torch.arange(examples) % 3


def train(model: nn.Module, scorer: Scorer, x: Tensor, y: Tensor) -> None:
    scorer.on_batch((x, y))
    train_batch(model, scorer, x)
    scorer.sync()


def test_scores_equal_the_table_of_mean_activations() -> None:
    model, graph, x, y = labelled()
    scorer = MutualInformation(bins=4).scorer(model, graph)
    maps: list[Tensor] = []
    handle = model[4].register_forward_pre_hook(lambda _m, args: maps.append(args[0].detach()))
    for part in (slice(0, 10), slice(10, 24)):
        train(model, scorer, x[part], y[part])
    scorer.close()
    handle.remove()
    mean_NC = torch.cat(maps).mean((2, 3)).float()
    expected = torch.tensor([gain(mean_NC[:, c].tolist(), y.tolist(), 4) for c in range(mean_NC.shape[1])])
    assert_same({"0": scorer.scores()["0"]}, {"0": expected}, rtol=1e-4)
    assert set(scorer.scores()) == set(graph.groups)


def test_only_the_last_examples_are_kept() -> None:
    model, graph, x, y = labelled()
    short = MutualInformation(bins=2, examples=8).scorer(model, graph)
    for start in range(0, 24, 4):
        train(model, short, x[start : start + 4], y[start : start + 4])
    short.pause()
    fresh = MutualInformation(bins=2, examples=8).scorer(model, graph)
    for start in (16, 20):
        train(model, fresh, x[start : start + 4], y[start : start + 4])
    short.close()
    fresh.close()
    assert short.state()["values"].shape[0] == 8
    assert_same(short.scores(), fresh.scores())


def test_half_gathered_examples_go_on_where_they_were_and_join() -> None:
    model, graph, x, y = labelled()
    criterion = MutualInformation(bins=4)
    whole, first, rest, resumed = (criterion.scorer(model, graph) for _ in range(4))
    for scorer in (whole, first, rest, resumed):
        scorer.pause()
    for scorer, part in ((whole, (0, 24)), (first, (0, 10)), (rest, (10, 24))):
        scorer.resume()
        train(model, scorer, x[slice(*part)], y[slice(*part)])
        scorer.pause()
    resumed.load_state(first.merge_states([first.state(), rest.state()]))
    assert all(torch.equal(resumed.scores()[name], score_C) for name, score_C in whole.scores().items())
    for scorer in (whole, first, rest, resumed):
        scorer.close()


def test_a_batch_that_is_not_finite_is_dropped() -> None:
    model, graph, x, y = labelled()
    with_broken, without = (MutualInformation().scorer(model, graph) for _ in range(2))
    broken = x.clone()
    broken[0] = float("nan")
    without.pause()
    train(model, with_broken, broken, y)
    without.resume()
    for scorer in (with_broken, without):
        scorer.on_batch((x, y))
    model(x)
    for scorer in (with_broken, without):
        scorer.end_batch(examples=len(x))
        scorer.close()
    assert_same(with_broken.scores(), without.scores())


def test_a_layer_that_some_batches_skip_has_the_examples_of_the_others() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.side, self.head = conv(3, 5), conv(5, 4), conv(4, 2), conv(4, 2)
            self.aside = True

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.body(torch.relu(self.stem(x))))
            out = self.head(x) if not self.aside else self.head(x) + self.side(x)
            return out.mean((2, 3))

    model, x, y = Sometimes().double(), torch.randn(12, 3, 8, 8, dtype=torch.float64), torch.arange(12) % 3
    graph = trace_channels(model, x)
    scorer = MutualInformation(bins=3).scorer(model, graph)
    both = MutualInformation(bins=3).scorer(model, graph)
    train(model, both, x, y)
    model.aside = False
    both.close()
    train(model, scorer, x, y)
    scorer.close()
    assert_same(scorer.scores(), both.scores())


@pytest.mark.parametrize(
    ("batch", "target"),
    [
        ([torch.zeros(4, 3), torch.tensor([3, 1, 2, 0])], None),
        ({"image": torch.zeros(4, 3), "id": torch.arange(4), "label": torch.tensor([[3], [1], [2], [0]])}, "label"),
        ((torch.zeros(4, 3), torch.arange(4), torch.tensor([3, 1, 2, 0])), 2),
    ],
)
def test_labels_are_found(batch: object, target: int | str | None) -> None:
    model, graph, x, _ = labelled(4)
    scorer = MutualInformation(target=target).scorer(model, graph)
    scorer.on_batch(batch)
    train_batch(model, scorer, x)
    scorer.close()
    assert scorer.state()["labels"].tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("batch", "target", "message"),
    [
        (torch.zeros(4, 3), None, "found 0 such tensors"),
        ((torch.zeros(4, 3), torch.arange(4), torch.arange(4)), None, "found 2 such tensors.*set target="),
        ((torch.zeros(4, 3), torch.zeros(4, 5)), 1, r"\(4, 5\) torch.float32"),
        ((torch.zeros(4, 3),), 7, "target=7 is not in the batch"),
    ],
)
def test_a_batch_without_one_label_an_example_is_described(batch: object, target: int | None, message: str) -> None:
    model, graph, _, _ = labelled(4)
    scorer = MutualInformation(target=target).scorer(model, graph)
    with pytest.raises(ValueError, match=message):
        scorer.on_batch(batch)
    scorer.close()


@pytest.mark.parametrize("settings_", [{"bins": 1}, {"examples": 1}, {"bins": True}, {"examples": 2.5}])
def test_wrong_settings_are_named(settings_: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings_))):
        MutualInformation(**settings_)  # type: ignore[arg-type]


def _gather_on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, graph, x, y = labelled()
    scorer = MutualInformation(bins=3).scorer(model, graph)
    for step in range(2):
        mine = slice(12 * step + 5 * rank, 12 * step + 5 + 7 * rank)
        train(model, scorer, x[mine], y[mine])
    scorer.sync()
    torch.save({"scores": scorer.scores(), "state": scorer.state()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_keep_the_examples_of_all(tmp_path: Path) -> None:
    all_well(on_ranks(2, _gather_on_a_rank, str(tmp_path)))
    one, other = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one["state"][key], value) for key, value in other["state"].items())
    torch.manual_seed(0)
    model, graph, x, y = labelled()
    scorer = MutualInformation(bins=3).scorer(model, graph)
    train(model, scorer, x, y)
    scorer.close()
    assert_same(one["scores"], scorer.scores())
