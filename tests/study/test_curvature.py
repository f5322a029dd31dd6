"""The exact curvature is the diagonal of the Hessian by gates, where the logits are piecewise linear in each gate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scores.gates import assert_same
from torch import Tensor, nn
from torch.func import functional_call
from zoo import build, conv

from lightning_taylor.criteria.obd import OBD
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.study.score_batches import gather_scores
from lightning_taylor.trace.api import trace_channels
from study.curvature import gather_curvature

Batch = tuple[Tensor, Tensor]


def gated_logits(model: nn.Module, graph: ChannelGraph, name: str, c: int, gate: Tensor, x: Tensor) -> Tensor:
    """The logits with every consumer of one channel seeing it through the gate."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    changed: dict[str, Tensor] = {}
    for s in graph.groups[name].of(Role.CONSUMER):
        tensor = changed.get(s.tensor, tensors[s.tensor].detach())
        along = torch.ones(tensor.shape[s.dim], dtype=gate.dtype).index_put(
            (s.index[c],), gate.expand(s.index.shape[1])
        )
        changed[s.tensor] = tensor * along.view([-1 if d == s.dim else 1 for d in range(tensor.ndim)])
    return functional_call(model, changed, (x,))


def gauss_newton(model: nn.Module, graph: ChannelGraph, batches: list[Batch]) -> dict[str, Tensor]:
    """Group -> ``(C,)``: the softmax's own Hessian between the logits' derivatives, one channel at a time."""
    found = {}
    for name, group in graph.groups.items():
        rows = []
        for c in range(group.size):
            total = 0.0
            for x, _ in batches:
                gate = torch.ones((), dtype=torch.float64)
                logit_NK = gated_logits(model, graph, name, c, gate, x)
                slope_NK = torch.autograd.functional.jacobian(
                    lambda g, x=x, name=name, c=c: gated_logits(model, graph, name, c, g, x), gate
                )
                assert isinstance(slope_NK, Tensor)
                for logit_K, slope_K in zip(logit_NK.detach(), slope_NK.detach(), strict=True):
                    H = torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, torch.tensor(0)), logit_K)
                    assert isinstance(H, Tensor)
                    total += float(slope_K @ H @ slope_K)
            rows.append(total / sum(len(y) for _, y in batches))
        found[name] = torch.tensor(rows, dtype=torch.float64)
    return found


def second_derivatives(model: nn.Module, graph: ChannelGraph, batches: list[Batch]) -> dict[str, Tensor]:
    """Group -> ``(C,)``: the loss differentiated twice by a gate, one channel at a time."""
    examples = sum(len(y) for _, y in batches)
    found = {}
    for name, group in graph.groups.items():
        rows = []
        for c in range(group.size):
            gate = torch.ones((), dtype=torch.float64, requires_grad=True)
            losses = [
                F.cross_entropy(gated_logits(model, graph, name, c, gate, x), y, reduction="sum") for x, y in batches
            ]
            (slope,) = torch.autograd.grad(torch.stack(losses).sum() / examples, gate, create_graph=True)
            rows.append(torch.autograd.grad(slope, gate)[0])
        found[name] = torch.stack(rows)
    return found


def vgg() -> nn.Module:
    return nn.Sequential(
        conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 5), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 36, 7), nn.ReLU(), nn.Linear(7, 4),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg", "residual", "concat", "option_a"])
def test_curvature_is_the_softmaxs_between_the_derivatives_of_the_logits(name: str) -> None:
    if name == "vgg":
        model, x = vgg().double(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    else:
        model, x = build(name)
    model.eval()
    graph = trace_channels(model, x)
    batches = [(torch.randn(n, 3, 12, 12, dtype=torch.float64), torch.randint(3, (n,))) for n in (3, 2)]
    found = gather_curvature(model, graph, batches, lambda net, batch: net(batch[0])).scores("OBD, exact")
    assert_same(found, gauss_newton(model, graph, batches), rtol=1e-5)
    # A stage of residual blocks is read at several depths, and the logits are no straight line in its gate.
    straight = {"residual": {"one.0", "two.0"}, "option_a": {"a"}}.get(name, set(graph.groups))
    assert straight <= set(graph.groups)
    exact = second_derivatives(model, graph, batches)
    assert_same({g: found[g] for g in straight}, {g: exact[g] for g in straight}, rtol=1e-5)
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.slow
def test_random_probes_approach_it() -> None:
    model, x = vgg().double(), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    graph = trace_channels(model, x)
    batches = [(x, torch.randint(4, (4,)))]
    exact = gather_curvature(model, graph, batches, lambda net, batch: net(batch[0])).scores("OBD, exact")

    def error(probes: int) -> float:
        gathered = gather_scores(
            model, graph, {"obd": OBD(probes)}, batches, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1])
        )
        found = gathered.scores("obd")
        return float(torch.cat([found[name] - exact[name] for name in exact]).square().mean().sqrt())

    few, many = error(4), error(400)
    assert many < few / 5


def test_what_is_no_table_of_logits_is_refused() -> None:
    model, x = build("decoder")
    graph = trace_channels(model, x)
    with pytest.raises(ValueError, match=r"logits must have shape \(examples, classes\), got \(2, 2, 24, 24\)"):
        gather_curvature(model, graph, [(x, x)], lambda net, batch: net(batch[0]))
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match="there is no batch"):
        gather_curvature(model, graph, [], lambda net, batch: net(batch[0]))
