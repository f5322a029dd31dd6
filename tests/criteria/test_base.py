"""A criterion of the user's own: one small class, in Python and in YAML; and what every criterion promises."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from fit.boring import Boring, loader
from fit.harness import fit, pruning
from torch import Tensor, nn
from zoo import Residual, conv

from lightning_taylor import OneShot
from lightning_taylor.criteria.activations import ActivationMean, ActivationStd, APoZ
from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.baselines import Random, WeightMagnitude
from lightning_taylor.criteria.combined import Combined
from lightning_taylor.criteria.mutual_information import MutualInformation
from lightning_taylor.criteria.obd import OBD
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.trace.api import trace_channels

ALL: tuple[Criterion, ...] = (
    ActivationMean(), ActivationStd(), APoZ(), MutualInformation(bins=4), OBD(), Random(), WeightMagnitude(),
    Taylor(), Taylor(absolute="batch"), Taylor(absolute="window"), TaylorBatch(), TaylorBatch(momentum=0.5),
    Combined(Taylor(), ActivationMean()),
)  # fmt: skip


class PeakWeight(Criterion):
    """The largest weight that reads a channel."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        return PeakWeightScorer(model, graph, self.power)


class PeakWeightScorer(Scorer):
    def __init__(self, model: nn.Module, graph: ChannelGraph, power: float) -> None:
        self.model, self.graph, self.power = model, graph, power

    def scores(self) -> dict[str, Tensor]:
        found = {}
        for name, group in self.graph.groups.items():
            peaks = []
            for s in group.of(Role.CONSUMER):
                weight = self.model.get_parameter(s.tensor).detach().abs().movedim(s.dim, 0).flatten(1)
                peaks.append(weight[s.index].amax((1, 2)))
            found[name] = torch.stack(peaks).amax(0) ** self.power
        return found


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), conv(8, 6), conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(torch.relu(self.stem(x))))).mean((2, 3))


def test_a_users_criterion_decides_what_goes(tmp_path: Path) -> None:
    module = Boring(Line(), "SGD", lr=1e-9)
    with torch.no_grad():
        module.net.body.weight[:, [1, 4, 6]] *= 1e-3
        module.net.head.weight[:, [0, 5]] *= 1e-3
    kept = module.net.stem.weight.detach()[[0, 2, 3, 5, 7]].clone()
    pruner = pruning(target=0.55, schedule=OneShot(step=2), criterion=PeakWeight())
    fit(module, pruner, tmp_path)
    assert pruner.reached
    torch.testing.assert_close(module.net.stem.weight.detach(), kept)


def test_a_users_criterion_is_built_from_yaml_by_its_name(tmp_path: Path) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--criterion", type=Criterion)
    file = tmp_path / "criterion.yaml"
    file.write_text(f"criterion:\n  class_path: {PeakWeight.__module__}.PeakWeight\n  init_args:\n    power: 2.0\n")
    parser.add_argument("--config", action="config")
    built = parser.instantiate(parser.parse_args([f"--config={file}"])).criterion
    assert repr(built) == "PeakWeight(power=2.0)"


@pytest.mark.parametrize("criterion", ALL, ids=repr)
def test_every_criterion_is_built_from_yaml(criterion: Criterion, tmp_path: Path) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--criterion", type=Criterion)

    def plain(one: Criterion) -> dict[str, object]:
        settings = {k: plain(v) if isinstance(v, Criterion) else v for k, v in vars(one).items()}
        return {"class_path": f"lightning_taylor.criteria.{type(one).__name__}", "init_args": settings}

    built = parser.instantiate(parser.parse_object({"criterion": plain(criterion)})).criterion
    assert repr(built) == repr(criterion)


@pytest.mark.parametrize("criterion", ALL, ids=repr)
def test_every_criterion_prunes_a_fit_to_its_target(criterion: Criterion, tmp_path: Path) -> None:
    module, pruner = Boring(Residual()), pruning(target=0.5, criterion=criterion)
    fit(module, pruner, tmp_path, loader(), accumulate_grad_batches=1)
    assert pruner.reached
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())


@pytest.mark.parametrize("criterion", ALL, ids=repr)
def test_every_criterion_leaves_the_training_as_it_is(criterion: Criterion) -> None:
    torch.manual_seed(0)
    model = Residual()
    twin, x, y = copy.deepcopy(model), torch.randn(6, 3, 12, 12), torch.arange(6) % 5
    graph = trace_channels(model, x)
    scorer = criterion.scorer(model, graph)
    scorer.on_batch((x, y))
    loss = nn.functional.cross_entropy(model(x), y)
    scorer.on_loss(loss)
    scorer.before_backward()
    loss.backward()
    scorer.after_backward()
    scorer.before_step()
    scorer.end_batch(examples=6)
    assert set(scorer.scores()) == set(graph.groups)
    scorer.close()
    nn.functional.cross_entropy(twin(x), y).backward()
    for (name, p), other in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, other[1].grad, msg=name)
    for mine, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("old", ["watch", "own_normalization", "own_flops_power", "default_flops_power"])
def test_a_criterion_with_an_old_name_names_the_new_one(old: str) -> None:
    with pytest.raises(TypeError, match=f"Mine defines '{old}', which is called '(scorer|default_\\w+)' now"):
        type("Mine", (Criterion,), {old: None})


@pytest.mark.parametrize("old", ["blind", "follow", "join", "see_batch", "see_loss"])
def test_a_scorer_with_an_old_name_names_the_new_one(old: str) -> None:
    with pytest.raises(TypeError, match=f"Mine defines '{old}', which is called '\\w+' now"):
        type("Mine", (Scorer,), {old: None})


def test_a_criterion_for_two_releases_may_have_both_names() -> None:
    both = {"watch": None, "scorer": lambda self, model, graph, *, event=0: None, "own_normalization": "l1"}
    assert type("Mine", (Criterion,), {**both, "default_normalization": "l1"})().default_normalization == "l1"
