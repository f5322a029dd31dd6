"""Going back is exact, also for copies that came after the snapshot."""

from __future__ import annotations

import copy

import torch
import zoo

from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.surgery.mirrors import Copy
from lightning_taylor.surgery.snapshot import Snapshot
from lightning_taylor.utilities.plain import from_plain, to_plain

X = torch.randn(4, 3, 12, 12)


def test_a_model_its_optimizer_and_its_copies_come_back_after_an_event() -> None:
    net = zoo.Residual()
    optimizer = torch.optim.AdamW(net.parameters())
    net(X).sum().backward()
    optimizer.step()
    graph = trace_channels(net, X)
    early = Copy("early", copy.deepcopy(net))
    with torch.no_grad():
        early.tensors.head.bias.fill_(7.0)  # type: ignore[union-attr,operator]
    snapshot = from_plain(Snapshot, to_plain(Snapshot.take(net, [optimizer], [early])))
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"], early.tensors.state_dict()))  # type: ignore[union-attr]
    late = Copy("late", copy.deepcopy(net))
    prune_channels(net, graph, graph.sample(0.4), optimizers=[optimizer], copies=[early, late])
    assert net.stem[0].out_channels < 8
    snapshot.restore(net, [optimizer], [late, early])
    after = (net.state_dict(), optimizer.state_dict()["state"], early.tensors.state_dict())  # type: ignore[union-attr]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close(late.tensors.state_dict(), before[0], rtol=0, atol=0)  # type: ignore[union-attr]
    assert net.stem[0].out_channels == late.tensors.stem[0].out_channels == 8  # type: ignore[union-attr,index,operator]
