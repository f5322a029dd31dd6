"""Rank correlations against a loop, criteria scored batch by batch against one pass, and the table of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from zoo import build

from lightning_taylor.criteria.activations import ActivationMean, ActivationStd
from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.baselines import Random, WeightMagnitude
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.normalize import normalize
from lightning_taylor.study.correlation import SCOPES, Correlations, correlate, scope_correlations, spearman
from lightning_taylor.study.correlation_table import CorrelationTable
from lightning_taylor.study.oracle import measure_oracle
from lightning_taylor.study.score_batches import gather_scores
from lightning_taylor.trace.api import trace_channels

CRITERIA: dict[str, Criterion] = {
    "taylor": Taylor(), "window": Taylor(absolute="window"), "batch": TaylorBatch(), "mean": ActivationMean(),
    "std": ActivationStd(), "information": MutualInformation(bins=3), "obd": OBD(), "weights": WeightMagnitude(),
    "random": Random(),
}  # fmt: skip


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def case(batches: int = 4) -> tuple[nn.Module, ChannelGraph, list[tuple[Tensor, Tensor]]]:
    model, x = build("residual")
    graph = trace_channels(model, x)
    data = [(torch.randn(3, *x.shape[1:], dtype=torch.float64), torch.randint(5, (3,))) for _ in range(batches)]
    return model, graph, data


def mean_ranks(values: list[int]) -> list[float]:
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=12))
def test_spearman_is_pearson_of_the_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    ones, others = (list(values) for values in zip(*pairs, strict=True))
    assume(len(set(ones)) > 1 and len(set(others)) > 1)
    ranks = torch.tensor([mean_ranks(ones), mean_ranks(others)], dtype=torch.float64)
    expected = float(torch.corrcoef(ranks)[0, 1])
    found = spearman(torch.tensor(ones, dtype=torch.float64) * 1e-12 + 1, torch.tensor(others, dtype=torch.float64))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_constant_score_ranks_nothing() -> None:
    assert spearman(torch.ones(5), torch.arange(5.0)) == 0.0


def test_scopes_are_within_groups_and_over_all_of_them() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([40.0, 30.0, 20.0])}
    truth = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([0.01, 0.02, 0.03])}
    channels = {"a": torch.tensor([0, 1, 3]), "b": torch.tensor([0, 1, 2])}
    found = scope_correlations(scores, truth, channels)
    assert tuple(found) == SCOPES
    assert found["per layer"] == pytest.approx((1 - 1) / 2)
    raw = torch.tensor([1.0, 2.0, 4.0, 40.0, 30.0, 20.0])
    assert found["none"] == pytest.approx(spearman(raw, torch.cat(list(truth.values()))))
    scaled = normalize(scores, "l2")
    flat = torch.cat([scaled["a"][channels["a"]], scaled["b"]])
    assert found["l2"] == pytest.approx(spearman(flat, torch.cat(list(truth.values()))))


def test_a_criterion_that_is_the_truth_correlates_fully() -> None:
    truth = {"a": torch.rand(5).double(), "b": 100 * torch.rand(6).double()}
    channels = {name: torch.arange(len(t)) for name, t in truth.items()}
    found = scope_correlations(truth, truth, channels)
    assert found["per layer"] == pytest.approx(1.0, abs=1e-5)
    assert found["none"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", CRITERIA)
def test_batches_gathered_apart_and_joined_are_one_pass(name: str) -> None:
    model, graph, data = case()
    gathered = gather_scores(model, graph, CRITERIA, data, loss)
    model.eval()
    if name == "obd":  # has other probes in every batch
        assert not torch.equal(*(gathered.scores(name, [b])["stem.0"] for b in (0, 1)))
        return
    for chosen in ([0, 1, 2, 3], [2], [1, 1, 3]):
        scorer = CRITERIA[name].scorer(model, graph)
        for batch in (data[b] for b in chosen):
            model.zero_grad()
            scorer.on_batch(batch)
            loss(model, batch).backward()
            scorer.before_step()
            scorer.end_batch(examples=3)
        scorer.close()
        for group, score_C in scorer.scores().items():
            torch.testing.assert_close(gathered.scores(name, chosen)[group], score_C, rtol=1e-5, atol=1e-7)


def test_gathering_leaves_the_model_as_it_was() -> None:
    model, graph, data = case()
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    gather_scores(model, graph, CRITERIA, data, loss)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match="there is no batch"):
        gather_scores(model, graph, CRITERIA, [], loss)


def test_criteria_are_compared_over_the_groups_that_all_can_score() -> None:
    model, graph, data = case()
    oracle = measure_oracle(model, graph, data, loss, progress=False)
    model.project.requires_grad_(False)  # type: ignore[union-attr]
    criteria = {"batch": TaylorBatch(), "weights": WeightMagnitude()}
    found = correlate(oracle, gather_scores(model, graph, criteria, data, loss), resamples=0)
    assert found.groups == len(graph.groups) - 1
    assert all(set(layers) == set(graph.groups) - {"stem.0"} for layers in found.layers.values())


def test_criteria_without_a_group_in_common_are_named() -> None:
    model, x = build("shared")
    graph = trace_channels(model, x)
    data = [(x, torch.tensor([0, 1]))]
    oracle = measure_oracle(model, graph, data, loss, progress=False)
    criteria = {"taylor": Taylor(), "weights": WeightMagnitude()}
    with pytest.raises(ValueError, match="no group was measured and has a score by all of taylor, weights"):
        correlate(oracle, gather_scores(model, graph, criteria, data, loss))


@pytest.mark.slow
def test_resamples_spread_about_the_whole_and_are_the_same_for_the_same_seed() -> None:
    model, graph, data = case(6)
    oracle = measure_oracle(model, graph, data, loss, progress=False)
    gathered = gather_scores(model, graph, CRITERIA, data, loss)
    found, again = (correlate(oracle, gathered, resamples=12) for _ in range(2))
    assert found == again
    assert found.groups == len(graph.groups)
    assert found.channels == sum(group.size for group in graph.groups.values())
    assert found.scopes["taylor"]["none"] > 0.5
    assert len(set(found.resampled["taylor"]["none"])) > 1
    # The truth is drawn anew too, so even a criterion without data moves.
    assert len(set(found.resampled["weights"]["none"])) > 1
    signed = correlate(oracle, gathered, signed=True, resamples=0)
    assert signed.scopes["taylor"] != found.scopes["taylor"]


def table(values: list[float], spread: float = 0.05) -> CorrelationTable:
    runs = []
    for value in values:
        scopes = {"Taylor": dict.fromkeys(SCOPES, value), "Random": dict.fromkeys(SCOPES, 0.0)}
        resampled = {
            name: {scope: [v - 0.1 + spread * (k - 5) / 5 for k in range(11)] for scope, v in row.items()}
            for name, row in scopes.items()
        }
        runs.append(Correlations(scopes, {name: {"conv1": row["l2"]} for name, row in scopes.items()}, resampled, 1, 9))
    return CorrelationTable(runs)


def test_an_interval_holds_the_chance_of_seeds_and_of_batches() -> None:
    many = table([0.5, 0.6, 0.7]).cell("Taylor", "l2")
    assert many.value == pytest.approx(0.6)
    assert many.low is not None
    assert many.high is not None
    assert 0.45 < many.low < 0.56 < 0.64 < many.high < 0.75
    one = table([0.6]).cell("Taylor", "l2")
    assert (one.low, one.high) == (pytest.approx(0.55), pytest.approx(0.65))


def test_the_table_is_printed_written_and_read(tmp_path: Path) -> None:
    made = table([0.5, 0.7])
    console = Console(record=True, width=140, file=None)
    with console.capture():
        made.show(console, layers=True)
    plain = json.loads(made.write(tmp_path / "table.json").read_text())
    assert plain["cells"]["Taylor"]["l2"]["value"] == pytest.approx(0.6)
    assert plain["layers"]["Taylor"] == {"conv1": pytest.approx(0.6)}
    assert list(plain["cells"]) == ["Taylor", "Random"]
    run = json.loads(json.dumps(made.runs[0].to_plain()))
    assert Correlations(**run) == made.runs[0]
    with pytest.raises(ValueError, match="at least one run"):
        CorrelationTable([])


def test_the_figure_has_a_dot_for_every_criterion_and_scope() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = table([0.5, 0.7]).figure().axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["Random", "Taylor"]
    found = [container.lines[0].get_xdata() for container in axes.containers]
    assert [list(map(float, x)) for x in found] == [[0.0, pytest.approx(0.6)]] * 3
