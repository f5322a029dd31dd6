"""What the tests of a whole fit share: a pruner whose scores can be looked at, and a watch over the survivors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import zoo
from torch import Tensor, nn

from fit.boring import Boring, loader, trainer
from lightning_taylor import OneShot, Taylor, TaylorPruning
from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph


class Recording(Criterion):
    """Another criterion, whose scores of every event are kept in ``seen``."""

    def __init__(self, inner: Criterion | None = None) -> None:
        self.inner = inner or Taylor()
        self.seen: list[dict[str, Tensor]] = []
        self.scorers: list[Scorer] = []
        self.graphs: list[ChannelGraph] = []

    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        scorer = self.inner.scorer(model, graph, event=event)
        scores = scorer.scores

        def record() -> dict[str, Tensor]:
            found = scores()
            self.seen.append(found)
            return found

        scorer.scores = record  # type: ignore[method-assign]
        self.scorers.append(scorer)
        self.graphs.append(graph)
        return scorer


def report_in(folder: Path) -> Any:
    """Read the data of the latest report in a folder; those of earlier fits stay beside it."""
    return json.loads(max(folder.glob("pruning*.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


class Survivors(L.Callback):
    """Notes after each batch what the weights are; ``still`` are those that stood still since the target was met."""

    def __init__(self, pruner: TaylorPruning) -> None:
        self.pruner = pruner
        self.at_target: dict[str, Tensor] = {}
        self.steps = 0
        self.still: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.pruner.reached and not self.at_target:
            self.at_target = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.steps += bool(self.at_target)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = dict(pl_module.named_parameters())
        self.still = [name for name, p in self.at_target.items() if torch.equal(now[name], p)]


def pruning(**kwargs: Any) -> TaylorPruning:
    return TaylorPruning(**{"target": 0.5, "measure_latency": False, **kwargs})


def fit(
    module: L.LightningModule,
    pruner: TaylorPruning,
    folder: Path,
    *loaders: Any,
    others: Sequence[L.Callback] = (),
    first: bool = False,
    **kwargs: Any,
) -> L.Trainer:
    """One fit; ``others`` are callbacks behind the pruner, or before it if ``first``."""
    callbacks = [*others, pruner] if first else [pruner, *others]
    run = trainer(callbacks, default_root_dir=folder, **kwargs)
    run.fit(module, *(loaders or (loader(),)))
    return run


def lands(
    module: L.LightningModule,
    folder: Path,
    *loaders: Any,
    pruner: TaylorPruning | None = None,
    still: Sequence[str] = (),
    **kwargs: Any,
) -> L.Trainer:
    """A fit that must reach the target and train every survivor afterwards, but for those named ``still``."""
    pruner = pruner or pruning()
    survivors = Survivors(pruner)
    others = [*kwargs.pop("others", ()), survivors]
    run = fit(module, pruner, folder, *loaders, others=others, **kwargs)
    graph = pruner.graph
    assert graph is not None
    assert pruner.reached
    assert survivors.steps > 1, "no step was left to train the survivors"
    assert [name for name in survivors.still if not name.startswith(tuple(still) or "-")] == []
    assert {n: tuple(p.shape) for n, p in module.named_parameters()}.items() <= dict(graph.shapes).items()
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert hooks_on(module) == 0
    return run


def scores_of(
    make: Callable[[], L.LightningModule],
    folder: Path,
    *loaders: Any,
    criterion: Criterion | None = None,
    step: int = 8,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """The scores at an only event, of a module made from one seed; with a learning rate of zero they depend on data
    and weights alone."""
    torch.manual_seed(0)
    recording = Recording(criterion)
    pruner = pruning(criterion=recording, schedule=OneShot(step), **(options or {}))
    fit(make(), pruner, folder, *loaders, **kwargs)
    assert len(recording.seen) == 1
    return recording.seen[0]


def frozen_rate(net: Callable[[], nn.Module] = zoo.OptionA, **kwargs: Any) -> Boring:
    """A module that stays what it is: whatever is scored, is scored at the same weights."""
    return Boring(net(), "SGD", **{"lr": 0.0, **kwargs})


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-4) -> None:
    """Same groups, and scores that differ by no more than ``rtol`` of the group's greatest."""
    assert set(found) == set(expected)
    for name, score_C in expected.items():
        assert score_C.max() > 0
        difference = float((found[name] - score_C).abs().max() / score_C.max())
        assert difference <= rtol, f"{name}: {found[name]} instead of {score_C}, {difference:.2g} apart"


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
