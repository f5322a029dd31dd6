"""A fit ranks channels by what they save of the resource that its target asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fit.boring import Boring, loader, trainer
from lightning_taylor import Gradual, OneShot, Target, Taylor, TaylorPruning
from lightning_taylor.measure.meter import Meter
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.measured_search import select_measured
from lightning_taylor.plan.price import channel_prices
from lightning_taylor.plan.select import select


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Mapping[str, float]]]:
    """What meters were asked for, and what they said."""
    told: list[tuple[str, Mapping[str, float]]] = []
    real = Meter.savings

    def savings(meter: Meter, graph: Any, resource: str, limit: float) -> dict[str, float]:
        told.append((resource, real(meter, graph, resource, limit)))
        return dict(told[-1][1])

    monkeypatch.setattr(Meter, "savings", savings)
    return told


def pruned(tmp_path: Path, target: Target, **options: Any) -> Any:
    torch.manual_seed(0)
    pruner = TaylorPruning(target, OneShot(3), Taylor(), measure_latency=False, **options)
    trainer([pruner], default_root_dir=tmp_path).fit(Boring(zoo.Residual()), loader())
    return pruner


@pytest.mark.parametrize("target", [0.8, 0.6, 0.5, 0.4])
def test_a_target_of_memory_takes_no_more_than_it_asks_for(tmp_path: Path, target: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(  # its first layer makes the peak, and then its second
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64),
        nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    pruner = TaylorPruning(Target(memory=target), Gradual(every_n_steps=2, start_step=2, end_step=6))
    images = TensorDataset(torch.rand(64, 3, 32, 32), torch.arange(64) % 4)
    trainer([pruner], default_root_dir=tmp_path).fit(Boring(net), DataLoader(images, 8))
    assert target - 0.02 <= pruner.remaining["memory"] <= target
    assert pruner.remaining["channels"] > 0.5 * target


@pytest.mark.slow
def test_a_target_of_memory_or_latency_asks_the_device(
    tmp_path: Path, prices: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(_: Meter, shapes: Mapping[str, tuple[int, ...]], resources: Any, **__: Any) -> dict[str, float]:
        """Of the dense entries: what such a small net takes on a busy machine says nothing about its widths."""
        dense = sum(t.numel() for t in zoo.Residual().state_dict().values())
        return dict.fromkeys(resources, sum(torch.Size(shape).numel() for shape in shapes.values()) / dense)

    monkeypatch.setattr(Meter, "ratios", share)
    for target in (Target(memory=0.9), Target(latency=0.9)):
        pruner = pruned(tmp_path, target)
        (resource,) = target.asked
        assert pruner.reached
        assert [asked for asked, _ in prices] == [resource]
        assert all(saved >= 0 for saved in prices.pop()[1].values())


@pytest.mark.slow
def test_nothing_is_measured_where_the_ranking_does_not_weigh(tmp_path: Path, prices: list[Any]) -> None:
    assert pruned(tmp_path, Target(memory=0.8), cost_power=0.0).reached
    assert pruned(tmp_path, Target(params=0.6)).reached
    assert not prices


def test_a_target_of_parameters_ranks_by_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def noted(scores: Any, graph: Any, demand: Any, *args: Any, **options: Any) -> Any:
        found = select_measured(scores, graph, demand, *args, **options)
        asked.append((scores, graph, demand, found.remove))
        return found

    monkeypatch.setattr("lightning_taylor.fit.pruner.select_measured", noted)
    pruned(tmp_path, Target(params=0.7), cost_power=2.0)
    ((scores, graph, demand, remove),) = asked
    price = channel_prices(Target(params=0.7), graph, CostModel(graph)).by_group
    expected = select(scores, graph, demand, cost_power=2.0, prices=price)
    assert {name: index.tolist() for name, index in remove.items()} == {k: v.tolist() for k, v in expected.items()}
    by_flops = select(scores, graph, demand, cost_power=2.0)
    assert {k: v.tolist() for k, v in by_flops.items()} != {k: v.tolist() for k, v in expected.items()}
