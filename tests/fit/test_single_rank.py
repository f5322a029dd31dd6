"""On one of several ranks a training step is traced as on the only one; the others need not come along."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import get_world_size

from fit.boring import Boring, loader, trainer
from fit.rank_fits import Case, Ranked, fit
from fit.rank_launch import WHERE, all_well, on_ranks
from fit.test_training_step import Learner
from lightning_taylor import TaylorPruning, trace_channels
from lightning_taylor.fit import news
from lightning_taylor.fit.single_rank import single_rank


class InParts(Ranked):
    """Calls its net's parts apart, and reads the features of all ranks, as contrastive learners do."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        hidden_BC = self.net.encoder(x)
        others = [hidden_BC.detach()]
        if dist.is_initialized() and dist.get_world_size() > 1:
            others = [torch.zeros_like(hidden_BC) for _ in range(dist.get_world_size())]
            dist.all_gather(others, hidden_BC.detach())
        return F.cross_entropy(self.net.head(hidden_BC), y) + self.net.head(torch.cat(others)).pow(2).mean()


class Stubborn(InParts):
    """Gathers without a question."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total = torch.ones(())
        dist.all_reduce(total)
        return super().training_step(batch, batch_idx)


class Fetching(Boring):
    """Reads from an iterator that no copy can have."""

    tried: ClassVar[list[int]] = []

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.images = iter(loader(n=64, batch=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.tried.append(batch_idx)
        return super().training_step(batch, batch_idx) + self.net(next(self.images)[0]).mean()


def parts() -> Any:
    net = Learner()
    return nn.ModuleDict({"encoder": net.encoder, "head": net.head})


def _told(rank: int, modules: dict[str, type[Ranked]], folder: str) -> dict[str, dict[str, Any]]:
    """The groups that fits of several modules found, and the lines that they said."""
    found, where = {}, {name: os.environ[name] for name in WHERE}
    for name, module in modules.items():
        os.environ.update(where)
        lines: list[str] = []
        news.rank_zero_info = lines.append  # type: ignore[assignment]
        graph = fit(rank, Case(parts, module), folder)["steps"][0]["graph"]
        found[name] = {"groups": sorted(graph["groups"]), "apart": [x for x in lines if "does not run on a copy" in x]}
    return found


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_answers_as_in_a_single_process(group: None) -> None:
    with single_rank():
        assert not dist.is_initialized()
        assert (dist.get_world_size(), dist.get_rank(None)) == (1, 0)
    assert dist.is_initialized()
    assert dist.get_world_size is get_world_size


@pytest.mark.parametrize(
    "collective",
    [
        lambda: dist.all_reduce(torch.ones(2)),
        lambda: dist.all_gather([torch.ones(2)], torch.ones(2)),
        lambda: dist.broadcast(torch.ones(2), 0),
        lambda: dist.barrier(),
    ],
)
def test_a_collective_raises_in_place_of_waiting(group: None, collective: Any) -> None:
    collective()
    with pytest.raises(RuntimeError, match="other ranks"), single_rank():
        collective()
    collective()


@pytest.mark.slow
def test_a_step_is_traced_on_two_ranks_as_on_one_unless_it_would_wait_for_the_other(tmp_path: Path) -> None:
    found = all_well(on_ranks(2, _told, {"asks": InParts, "waits": Stubborn}, str(tmp_path)))[0]
    callback = TaylorPruning(0.5, measure_latency=False)
    trainer([callback], default_root_dir=tmp_path, max_epochs=1).fit(InParts(parts()))
    assert callback.graph is not None
    assert found["asks"] == {"groups": sorted(callback.graph.groups), "apart": []}
    assert found["asks"]["groups"] == ["net.encoder.0", "net.encoder.2"]
    assert found["waits"]["groups"] == ["net.encoder.0"]  # what it hands from part to part stays
    (line,) = found["waits"]["apart"]
    assert "c10d.allreduce_" in line
    assert f"{Path(__file__).name}:" in line


def test_a_step_that_fails_on_a_copy_is_tried_once_on_a_single_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, lines = Fetching(Learner()), []
    monkeypatch.setattr(Fetching, "tried", [])
    monkeypatch.setattr(news, "rank_zero_info", lines.append)
    run = trainer([TaylorPruning(0.5, measure_latency=False)], default_root_dir=tmp_path, max_epochs=1)
    run.fit(module, loader(n=16, batch=1))
    (line,) = (line for line in lines if "does not run on a copy" in line)
    assert f"(TypeError: 'NoneType' object is not an iterator, {Path(__file__).name}:" in line
    assert len(Fetching.tried) == 16 + 1


def test_a_model_without_a_step_has_no_failure_of_one() -> None:
    assert trace_channels(Learner(), torch.rand(1, 3, 8, 8)).step_failure == ""
