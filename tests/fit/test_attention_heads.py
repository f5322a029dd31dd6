"""A fit makes heads thinner where it is told to, and its checkpoint and its exports keep to that."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from zoo_heads import SPREAD

from fit.boring import Boring, kept_trainer
from fit.resuming import StatefulLoader, differences
from lightning_taylor import Gradual, Taylor, TaylorBatch, TaylorPruning, load_pruned, trace_channels
from lightning_taylor.export.onnx import export_onnx
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role

KEPT, STEPS = 3, 6
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NETS = ("stock", "own_three_fused", "vit", "swin", "swin_v2", "maxvit")


class Net(Boring):
    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        make, side = SPREAD[name]
        super().__init__(nn.Sequential(nn.Upsample((side, side)), make()))
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.1)


def widths(graph: ChannelGraph) -> dict[str, tuple[int, int]]:
    """Group of queries -> coordinates of each head, dense and now."""
    return {n: (graph.dense_sizes[n], group.size) for n, group in graph.groups.items() if group.of(Role.QUERY)}


def fit(
    folder: Path, name: str, choice: str, ckpt: Path | None = None, criterion: object = None
) -> tuple[Net, TaylorPruning]:
    pruning = TaylorPruning(
        0.7,
        Gradual(2, 0, 4),
        criterion or Taylor(),
        measure_latency=False,
        attention_heads=choice,  # type: ignore[arg-type]
    )
    keep = ModelCheckpoint(folder, filename="kept", every_n_train_steps=KEPT, save_top_k=-1)
    model = Net(name)
    trainer = kept_trainer(folder, [pruning, keep], STEPS)
    trainer.fit(model, StatefulLoader(STEPS, 4), ckpt_path=ckpt, weights_only=True)
    return model, pruning


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
@pytest.mark.parametrize("name", NETS)
def test_heads_get_thinner_and_a_resumed_fit_goes_on_so_under_another_choice(name: str, tmp_path: Path) -> None:
    straight, pruning = fit(tmp_path / "straight", name, "spread")
    assert pruning.graph is not None
    found = widths(pruning.graph)
    assert found
    assert any(now < dense for dense, now in found.values())

    kept = tmp_path / "straight" / "kept.ckpt"
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    with pytest.warns(UserWarning, match="attention_heads: .* was found with attention_heads='spread' and travels"):
        resumed, after = fit(tmp_path / "resumed", name, "whole", kept)
    assert differences(dict(straight.state_dict()), dict(resumed.state_dict())) == []
    assert after.graph is not None
    assert widths(after.graph) == found

    loaded = load_pruned(Net, kept, name=name).eval()
    assert loaded.net(X).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stock", pytest.param("swin", marks=pytest.mark.slow)])
def test_what_is_left_can_be_traced_scored_and_exported(name: str, tmp_path: Path) -> None:
    model, pruning = fit(tmp_path, name, "spread", criterion=TaylorBatch())
    assert pruning.graph is not None
    model.eval()
    again = trace_channels(model.net, X, attention_heads="spread")
    assert {n.removeprefix("net."): now for n, (_, now) in widths(pruning.graph).items()} == {
        n: now for n, (_, now) in widths(again).items()
    }
    export_onnx(model.net, X, tmp_path / "net.onnx")
