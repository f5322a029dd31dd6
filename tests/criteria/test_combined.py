"""``Combined`` adds two normalised criteria, and hands on to both whatever it is told."""

from __future__ import annotations

import pytest
import torch
from scores.gates import assert_same, case, scored, train_batch
from zoo import NETS

from lightning_taylor.criteria.activations import ActivationMean
from lightning_taylor.criteria.baselines import WeightMagnitude
from lightning_taylor.criteria.combined import Combined
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.scores.normalize import normalize


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("shared", "auxiliary")])
@pytest.mark.parametrize("how", ["l2", "none"])
def test_scores_are_the_weighted_sum_of_the_normalised_ones(name: str, how: str) -> None:
    model, graph, x = case(name)
    taylor, mean = (normalize(scored(c, model, graph, x), how) for c in (Taylor(), ActivationMean()))  # type: ignore[arg-type]
    found = scored(Combined(Taylor(), ActivationMean(), share=0.25, normalization=how), model, graph, x)  # type: ignore[arg-type]
    assert found
    assert_same(found, {group: 0.75 * taylor[group] + 0.25 * mean[group] for group in taylor})


def test_a_group_that_one_cannot_score_has_none() -> None:
    model, graph, x = case("shared")
    both = Combined(WeightMagnitude(), Taylor()).scorer(model, graph)
    train_batch(model, both, x)
    both.close()
    assert set(both.unscorable) == {"stem"}
    assert set(both.scores()) == set(graph.groups) - {"stem"}


def test_half_gathered_scores_go_on_and_join() -> None:
    model, graph, x = case("concat", examples=4)
    criterion = Combined(Taylor(), Combined(TaylorBatch(), ActivationMean()))
    first, second = criterion.scorer(model, graph), criterion.scorer(model, graph)
    second.pause()
    train_batch(model, first, x[:3])
    first.close()
    second.resume()
    second.load_state(first.state())
    train_batch(model, second, x[3:])
    second.close()
    whole = scored(criterion, model, graph, x[:3], x[3:])
    assert all(torch.equal(second.scores()[name], score_C) for name, score_C in whole.items())
    alone = criterion.scorer(model, graph)
    train_batch(model, alone, x[3:])
    alone.close()
    joined = first.merge_states([first.state(), alone.state()])
    second.load_state(joined)
    assert_same(second.scores(), whole, rtol=1e-5)


def test_batch_and_loss_reach_both() -> None:
    model, graph, x = case("vgg", examples=6)
    scorer = Combined(MutualInformation(bins=2), OBD()).scorer(model, graph)
    scorer.on_batch((x, torch.arange(6) % 2))
    loss = model(x).square().mean()
    scorer.on_loss(loss)
    scorer.before_backward()
    loss.backward()
    scorer.after_backward()
    scorer.end_batch(examples=6)
    scorer.sync()
    scorer.close()
    assert set(scorer.scores()) == set(graph.groups)


def test_an_error_in_the_second_leaves_no_hook_of_the_first() -> None:
    model, graph, _ = case("vgg")

    class Broken(WeightMagnitude):  # type: ignore[misc]
        def scorer(self, *_: object, **__: object) -> None:  # type: ignore[override]
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Combined(Taylor(), Broken()).scorer(model, graph)
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first": Taylor}, "first takes a criterion"),
        ({"second": None}, "second takes a criterion"),
        ({"share": 1.5}, "share must be a number in"),
        ({"share": "half"}, "share must be a number in"),
        ({"normalization": "max"}, "normalization must be one of"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Combined(**{"first": Taylor(), "second": ActivationMean(), **settings})  # type: ignore[arg-type]
