"""The oracle is the loss of a network whose consumers read one channel as zero, minus that of the whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import NETS, build, conv

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.study.oracle import measure_oracle, sample_channels
from lightning_taylor.trace.api import trace_channels

Batch = tuple[Tensor, Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    out = model(batch[0])
    return ((out[0] if isinstance(out, tuple) else out).flatten(1).sin().sum(1) * (1 + batch[1])).mean()


def case(name: str) -> tuple[nn.Module, ChannelGraph, list[Batch]]:
    model, x = build(name)
    graph = trace_channels(model, x)
    inputs = [torch.randn(n, *x.shape[1:], dtype=torch.float64) for n in (3, 2)]
    return model.eval(), graph, [(x, torch.arange(len(x))) for x in inputs]


def plain_loop(model: nn.Module, graph: ChannelGraph, batches: list[Batch]) -> dict[str, Tensor]:
    """Group -> ``(C, B)``, by copies of the weights, one channel and one batch at a time."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {}
    with torch.no_grad():
        base_B = torch.stack([loss(model, batch) for batch in batches])
        for group in graph.groups.values():
            rows = []
            for c in range(group.size):
                kept = {s.tensor: tensors[s.tensor].clone() for s in group.read}
                for s in group.read:
                    tensors[s.tensor].index_fill_(s.dim, s.index[c], 0)
                rows.append(torch.stack([loss(model, batch) for batch in batches]) - base_B)
                for name, value in kept.items():
                    tensors[name].copy_(value)
            found[group.name] = torch.stack(rows)
    return found


@pytest.mark.parametrize("name", NETS)
def test_changes_equal_the_loop_over_zeroed_weights(name: str) -> None:
    model, graph, batches = case(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    oracle = measure_oracle(model, graph, batches, loss, copies=3, progress=False)
    expected = plain_loop(model, graph, batches)
    assert set(oracle.changes) == set(graph.groups)
    for group, change_CB in expected.items():
        torch.testing.assert_close(oracle.changes[group], change_CB, rtol=1e-9, atol=1e-12)
    assert oracle.examples.tolist() == [3, 2]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_signed_and_absolute_are_of_the_mean_over_examples() -> None:
    model, graph, batches = case("vgg")
    oracle = measure_oracle(model, graph, batches, loss, progress=False)
    changes = plain_loop(model, graph, batches)
    for group, change_CB in changes.items():
        mean_C = (3 * change_CB[:, 0] + 2 * change_CB[:, 1]) / 5
        torch.testing.assert_close(oracle.signed()[group], mean_C, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(oracle.absolute()[group], mean_C.abs(), rtol=1e-9, atol=1e-12)
        twice_C = (6 * change_CB[:, 0]) / 6
        torch.testing.assert_close(oracle.signed(torch.tensor([2.0, 0.0]))[group], twice_C, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        whole = torch.stack([loss(model, batch) for batch in batches])
    assert oracle.loss == pytest.approx(float((3 * whole[0] + 2 * whole[1]) / 5))


def test_code_that_cannot_run_in_copies_runs_one_by_one() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = conv(3, 5), conv(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.body(F.relu(self.stem(x))))
            return self.head(x.mean((2, 3)) * (1.0 if float(x.detach().sum()) > -1 else 2.0))

    model = Branching().double()
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    batches = [(torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.arange(3))]
    oracle = measure_oracle(model, graph, batches, loss, progress=False)
    for group, change_CB in plain_loop(model, graph, batches).items():
        torch.testing.assert_close(oracle.changes[group], change_CB, rtol=1e-9, atol=1e-12)


def test_a_sample_holds_its_share_of_every_group_and_is_measured_alone() -> None:
    model, graph, batches = case("residual")
    channels = sample_channels(graph, 0.3, least=2, generator=torch.Generator().manual_seed(3))
    assert {name: len(index_S) for name, index_S in channels.items()} == {
        name: max(2, -(-3 * group.size // 10)) for name, group in graph.groups.items()
    }
    oracle = measure_oracle(model, graph, batches, loss, channels=channels, progress=False)
    everything = plain_loop(model, graph, batches)
    for group, index_S in channels.items():
        torch.testing.assert_close(oracle.changes[group], everything[group][index_S], rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got 0"):
        sample_channels(graph, 0)


class Failing(list[Batch]):
    """Batches of which one cannot be read."""

    def __init__(self, batches: list[Batch], at: int) -> None:
        super().__init__(batches)
        self.at = at

    def __iter__(self) -> Any:
        for place, batch in enumerate(list.__iter__(self)):
            if place == self.at:
                raise OSError("gone")
            yield batch


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    model, graph, batches = case("vgg")
    file = tmp_path / "deep" / "oracle.pt"
    whole = measure_oracle(model, graph, batches, loss, progress=False)
    with pytest.raises(OSError, match="gone"):
        measure_oracle(model, graph, Failing(batches, at=1), loss, state=file, progress=False)
    assert [f.name for f in file.parent.iterdir()] == ["oracle.pt"]
    asked: list[int] = []

    def counted(net: nn.Module, batch: Batch) -> Tensor:
        asked.append(len(batch[0]))
        return loss(net, batch)

    resumed = measure_oracle(model, graph, batches, counted, state=file, progress=False)
    assert set(asked) == {2}
    assert all(torch.equal(whole.changes[name], change) for name, change in resumed.changes.items())
    asked.clear()
    measure_oracle(model, graph, batches, counted, state=file, progress=False)
    assert asked == []


def test_a_state_of_other_weights_or_channels_is_refused(tmp_path: Path) -> None:
    model, graph, batches = case("vgg")
    file = tmp_path / "oracle.pt"
    measure_oracle(model, graph, batches, loss, state=file, progress=False)
    few = sample_channels(graph, 0.1, least=1)
    with pytest.raises(ValueError, match="other weights or other channels"):
        measure_oracle(model, graph, batches, loss, channels=few, state=file, progress=False)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(ValueError, match="other weights or other channels"):
        measure_oracle(model, graph, batches, loss, state=file, progress=False)


def test_no_batch_is_an_error() -> None:
    model, graph, _ = case("vgg")
    with pytest.raises(ValueError, match="there is no batch"):
        measure_oracle(model, graph, [], loss, progress=False)


def test_the_mode_of_every_module_comes_back() -> None:
    model, graph, batches = case("residual")
    model.train()
    model.one.eval()
    measure_oracle(model, graph, batches, loss, progress=False)
    assert model.training
    assert model.stem.training
    assert not any(m.training for m in model.one.modules())
