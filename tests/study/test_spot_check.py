from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from fit.boring import Boring
from lightning.pytorch.utilities.compile import from_compiled
from torch import Tensor
from zoo import build

from lightning_taylor.graph.types import Role
from lightning_taylor.study.correlation import spearman
from lightning_taylor.study.spot_check import draw_channels, spot_check, training_loss
from lightning_taylor.trace.api import trace_channels


class Dropping(Boring):
    """With what an evaluation has to leave alone: dropout, and metrics that are logged."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step((F.dropout(batch[0], 0.5, self.training), batch[1]), batch_idx)
        self.log("train_loss", loss)
        return loss


def test_the_correlation_is_that_of_one_removal_after_the_other() -> None:
    torch.manual_seed(0)
    net, x = build("residual")
    module = Dropping(net)
    module.forward = net.forward  # type: ignore[method-assign]
    batch = (torch.randn(6, *x.shape[1:], dtype=x.dtype), torch.arange(6) % 2)
    graph = trace_channels(module, x)
    scores = {name: torch.rand(group.size) for name, group in graph.groups.items()}
    found = spot_check(module, graph, scores, batch, count=10, seed=3)

    drawn = draw_channels(scores, 10, torch.Generator().manual_seed(3))
    module.eval()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    tensors, ranked, truth = dict(module.named_parameters()), [], []
    with torch.no_grad():
        base = training_loss(module, batch)
        for name, index_S in drawn.items():
            for channel in index_S.tolist():
                kept = {s.tensor: tensors[s.tensor].clone() for s in graph.groups[name].of(Role.CONSUMER)}
                for s in graph.groups[name].of(Role.CONSUMER):
                    tensors[s.tensor].index_fill_(s.dim, s.index[channel], 0)
                ranked.append(float(scores[name][channel]))
                truth.append(float((training_loss(module, batch) - base).abs()))
                for tensor_name, value in kept.items():
                    tensors[tensor_name].copy_(value)
    assert found == pytest.approx(spearman(torch.tensor(ranked), torch.tensor(truth)), abs=1e-6)
    assert len(set(truth)) > 5


class OneArgument(Boring):
    """A training step without the number of the batch, as Lightning allows it."""

    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().training_step(batch, 0)


def small(kind: type[Boring]) -> tuple[Boring, Any, dict[str, Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    net, x = build("residual")
    module = kind(net).float()
    module.forward = net.forward  # type: ignore[method-assign]
    graph = trace_channels(module, x.float())
    scores = {name: torch.rand(group.size) for name, group in graph.groups.items()}
    return module, graph, scores, (torch.randn(6, *x.shape[1:]), torch.arange(6) % 2)


def test_a_step_without_the_number_of_the_batch_is_called_without() -> None:
    assert spot_check(*small(OneArgument), count=10) == spot_check(*small(Boring), count=10) != 0


@pytest.mark.slow
def test_a_compiled_module_is_checked_on_its_copy_and_left_alone() -> None:
    module, graph, scores, batch = small(Boring)
    plain = spot_check(module, graph, scores, batch, count=10)
    compiled = from_compiled(torch.compile(module, backend="eager"))
    before = {name: tensor.clone() for name, tensor in compiled.state_dict().items()}
    found = spot_check(compiled, graph, scores, batch, count=10)
    torch.compiler.reset()
    assert found == pytest.approx(plain)
    assert all(torch.equal(before[name], tensor) for name, tensor in compiled.state_dict().items())


def test_every_channel_is_as_likely_as_any_other() -> None:
    scores, generator = {"a": torch.rand(30), "b": torch.rand(10)}, torch.Generator().manual_seed(0)
    drawn = [draw_channels(scores, 8, generator) for _ in range(400)]
    assert all(sum(map(len, d.values())) == 8 for d in drawn)
    of_a = sum(len(d.get("a", ())) for d in drawn) / (400 * 8)
    assert of_a == pytest.approx(30 / 40, abs=0.03)
    assert {i for d in drawn for i in d["a"].tolist()} == set(range(30))


def test_more_channels_than_there_are_means_all() -> None:
    drawn = draw_channels({"a": torch.rand(3), "b": torch.rand(2)}, 100, torch.Generator())
    assert {name: index_S.tolist() for name, index_S in drawn.items()} == {"a": [0, 1, 2], "b": [0, 1]}


class Manual(L.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


def test_a_step_without_a_loss_is_named() -> None:
    with pytest.raises(ValueError, match=r"Manual\.training_step returned NoneType in place of a loss"):
        training_loss(Manual(), None)
