"""The criteria without data, and the normalisation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scores.gates import assert_same, case, scored
from zoo import NETS

from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.baselines import Random, WeightMagnitude
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.types import Role
from lightning_taylor.scores.normalize import normalize


@pytest.mark.parametrize("name", NETS)
def test_magnitude_is_the_mean_square_over_all_kernels_of_the_channel(name: str) -> None:
    model, graph, x = case(name)
    parameters = dict(model.named_parameters())
    expected = {}
    for group in graph.groups.values():
        kernels = [s for s in group.of(Role.PRODUCER) if parameters[s.tensor].ndim > 1]
        rows = [
            torch.cat([parameters[s.tensor].detach().movedim(s.dim, 0)[s.index[c]].flatten() for s in kernels])
            for c in range(group.size)
        ]
        expected[group.name] = torch.stack([row.square().mean() for row in rows])
    assert_same(scored(WeightMagnitude(), model, graph, x), expected)


def test_chance_depends_on_seed_event_and_group_only() -> None:
    model, graph, _ = case("residual")
    state = torch.get_rng_state()
    first = Random(3).scorer(model, graph, event=2).scores()
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(17)
    again = Random(3).scorer(model, graph, event=2).scores()
    assert all(torch.equal(first[name], again[name]) for name in graph.groups)
    fewer = dataclasses.replace(graph, groups={name: graph.groups[name] for name in reversed(graph.groups)})
    assert all(torch.equal(first[n], s) for n, s in Random(3).scorer(model, fewer, event=2).scores().items())
    flat = torch.cat(list(first.values()))
    assert len(flat.unique()) == len(flat)
    for other in (Random(4).scorer(model, graph, event=2), Random(3).scorer(model, graph, event=3)):
        assert not any(torch.equal(first[name], score_C) for name, score_C in other.scores().items())


@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch(), WeightMagnitude()])
def test_a_model_that_changed_since_the_trace_is_refused(criterion: Criterion) -> None:
    model, graph, _ = case("vgg")
    model[8] = torch.nn.Linear(16, 10)
    with pytest.raises(UncoupledChannelsError, match=r"'8\.weight' has shape \(10, 16\)"):
        criterion.scorer(model, graph).scores()
    del model[8:]
    with pytest.raises(UncoupledChannelsError, match="is gone"):
        criterion.scorer(model, graph).scores()


_SCORES = st.lists(st.floats(0, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(_SCORES, st.sampled_from([1e-35, 1.0, 1e25]))
def test_normalised_scores_have_the_unit_norm_and_keep_their_order(values: list[float], factor: float) -> None:
    score_C = torch.tensor(values, dtype=torch.float64) * factor
    for how, norm in (("l2", 2), ("l1", 1)):
        unit_C = normalize({"g": score_C}, how)["g"]
        assert float(torch.linalg.vector_norm(unit_C, norm)) == pytest.approx(1.0 if score_C.any() else 0.0)
        torch.testing.assert_close(unit_C * torch.linalg.vector_norm(score_C, norm), score_C, rtol=1e-9, atol=0)
    spread_C = normalize({"g": score_C}, "minmax")["g"]
    assert float(spread_C.min()) == 0
    assert float(spread_C.max()) == (1 if score_C.min() < score_C.max() else 0)
    assert torch.equal(normalize({"g": score_C}, "none")["g"], score_C)


@pytest.mark.parametrize("how", ["l2", "l1", "minmax", "none"])
def test_tiny_and_zero_scores_stay_finite_in_float32(how: str) -> None:
    scores = {"tiny": torch.tensor([1e-30, 3e-30]), "zero": torch.zeros(3), "equal": torch.ones(2)}
    found = normalize(scores, how)  # type: ignore[arg-type]
    assert list(found) == list(scores)
    assert all(bool(score_C.isfinite().all()) for score_C in found.values())
    assert not found["zero"].any()
    assert float(found["tiny"][1]) > float(found["tiny"][0])


def test_an_unknown_normalisation_is_named() -> None:
    with pytest.raises(ValueError, match="'max'"):
        normalize({}, "max")  # type: ignore[arg-type]
