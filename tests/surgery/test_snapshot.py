"""Going back is exact, also for copies that came after the snapshot."""

from __future__ import annotations

import copy

import pytest
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


def stepped(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return optimizer


@pytest.mark.parametrize("late", ["LBFGS", "Adam", "SGD", "another class", "as before"])
def test_optimizers_go_on_after_going_back(late: str) -> None:
    """One that came after the snapshot, or in the place of another, begins without state; none meets old widths."""
    net = zoo.Residual()
    body, head = [p for n, p in net.named_parameters() if "head" not in n], list(net.head.parameters())
    first = stepped(
        net, torch.optim.LBFGS(body, max_iter=2) if late == "LBFGS" else torch.optim.SGD(body, momentum=0.9)
    )
    graph = trace_channels(net, X)
    snapshot = from_plain(Snapshot, to_plain(Snapshot.take(net, [first])))
    if late == "another class":
        first = stepped(net, torch.optim.Adam(body))
    optimizers = [first]
    if late in ("Adam", "SGD"):
        optimizers.append(stepped(net, getattr(torch.optim, late)(head, lr=0.01)))
    prune_channels(net, graph, graph.sample(0.4), optimizers=optimizers)
    for optimizer in optimizers:
        stepped(net, optimizer)
    snapshot.restore(net, optimizers)
    moments = [t for state in first.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    assert bool(moments) == (late != "another class")
    for optimizer in optimizers:
        stepped(net, optimizer)
    assert net.stem[0].out_channels == 8
