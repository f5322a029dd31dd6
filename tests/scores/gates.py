"""The slow, plainly right twin of the Taylor scores: a gate on every channel, one example and one group at a time.

The gate multiplies the consumers' weights, which is to multiply what the consumers receive.

Shape legend: N = examples, C = channels of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from zoo import build

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.trace.api import trace_channels


def case(name: str, examples: int = 3) -> tuple[nn.Module, ChannelGraph, Tensor]:
    """A net of the zoo in evaluation mode and double precision, its graph, and a batch."""
    model, x = build(name)
    graph = trace_channels(model, x)
    return model.eval(), graph, torch.randn(examples, *x.shape[1:], dtype=torch.float64)


def losses(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Shape ``(N,)``: some loss of each example that is not linear in the output."""
    outputs = (out,) if isinstance(out, Tensor) else out
    return torch.stack([(t.flatten(1).cos() * torch.arange(1, 1 + t[0].numel())).sum(1) for t in outputs]).sum(0)


def gated_losses(model: nn.Module, graph: ChannelGraph, group: str, gate_C: Tensor, x: Tensor) -> Tensor:
    """Shape ``(N,)``: the losses with every consumer of the group seeing its channels through the gate."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    changed = {}
    for s in graph.groups[group].of(Role.CONSUMER, Role.QUERY):
        tensor = changed.get(s.tensor, tensors[s.tensor])
        index = s.index.flatten()
        gates = gate_C.repeat_interleave(s.index.shape[1])
        along = torch.ones(tensor.shape[s.dim], dtype=gate_C.dtype).index_put((index,), gates)
        changed[s.tensor] = tensor * along.view([-1 if d == s.dim else 1 for d in range(tensor.ndim)])
    return losses(functional_call(model, changed, (x,)))


def contributions(model: nn.Module, graph: ChannelGraph, group: str, x: Tensor) -> Tensor:
    """Shape ``(N, C)``: derivative of each example's own loss with respect to the gates."""
    rows = []
    for example in x.split(1):
        gate_C = torch.ones(graph.groups[group].size, dtype=x.dtype, requires_grad=True)
        loss = gated_losses(model, graph, group, gate_C, example).sum()
        (grad_C,) = torch.autograd.grad(loss, gate_C, allow_unused=True)
        rows.append(torch.zeros_like(gate_C) if grad_C is None else grad_C)
    return torch.stack(rows)


def train_batch(model: nn.Module, scorer: Scorer, x: Tensor, *, scale: float = 1.0) -> None:
    """One training batch with a mean-reduced loss, up to the optimizer step."""
    model.zero_grad()
    (losses(model(x)).mean() * scale).backward()
    scorer.end_batch(examples=len(x), grad_scale=scale)
    scorer.before_step()


def scored(criterion: Criterion, model: nn.Module, graph: ChannelGraph, *batches: Tensor) -> dict[str, Tensor]:
    """The scores after some batches, with nothing left on the model."""
    scorer = criterion.scorer(model, graph)
    try:
        for x in batches:
            train_batch(model, scorer, x)
        return scorer.scores()
    finally:
        scorer.close()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-6) -> None:
    """Same groups, and scores equal up to ``rtol`` of the group's greatest."""
    assert set(found) == set(expected)
    for name, score_C in expected.items():
        atol = rtol * float(score_C.abs().max())
        message = f"{name}: {found[name]} instead of {score_C}"
        torch.testing.assert_close(found[name], score_C.float(), rtol=0, atol=atol, msg=message)
