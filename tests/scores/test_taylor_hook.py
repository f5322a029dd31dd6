"""The tap on a layer's input: in any kind of training step, and without a trace afterwards."""

from __future__ import annotations

import copy
import gc
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint
from zoo import conv

from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.trace.api import trace_channels
from scores.gates import assert_same, losses, scored, train_batch


class Net(nn.Module):
    """A body whose consumers sit behind in-place activations, run in the ways that training code knows."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=how == "in place"))
        self.body = nn.Sequential(conv(6, 8), nn.SiLU(inplace=how == "in place"), conv(8, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.how.startswith("checkpoint"):
            x = checkpoint(self.body, x, use_reentrant=self.how.endswith("reentrant"))
        elif self.how == "keyword":
            x = self.body[2](input=F.silu(self.body[0](input=x)))
        else:
            x = self.body(x)
        return self.head(F.relu(x, inplace=self.how == "in place").mean((2, 3)))


def net(how: str = "plain", dtype: torch.dtype = torch.float64) -> tuple[Net, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    model = Net(how).to(dtype)
    graph = trace_channels(Net(), torch.randn(1, 3, 8, 8))
    return model, graph, torch.randn(4, 3, 8, 8, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("how", ["in place", "checkpoint", "checkpoint reentrant", "keyword"])
def test_the_way_the_body_runs_does_not_change_the_scores(how: str) -> None:
    plain, graph, x = net()
    other, _, _ = net(how)
    assert len(graph.groups) == 3
    assert_same(scored(Taylor(), other, graph, x), scored(Taylor(), plain, graph, x))


def test_channels_last_does_not_change_the_scores() -> None:
    model, graph, x = net()
    expected = scored(Taylor(), model, graph, x)
    model.to(memory_format=torch.channels_last)
    for criterion, same in ((Taylor(), expected), (TaylorBatch(), scored(TaylorBatch(), net()[0], graph, x))):
        assert_same(scored(criterion, model, graph, x.to(memory_format=torch.channels_last)), same)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_mixed_precision_gives_the_scores_in_float32(backward_inside: bool) -> None:
    model, graph, x = net(dtype=torch.float32)
    expected = scored(Taylor(), model, graph, x)
    scorer = Taylor().scorer(model, graph)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses(model(x).float()).mean()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    scorer.end_batch(examples=len(x))
    scorer.close()
    assert all(score_C.dtype == torch.float32 for score_C in scorer.scores().values())
    assert_same(scorer.scores(), expected, rtol=0.05)


def test_the_gradients_of_training_are_bitwise_the_same() -> None:
    model, graph, x = net(dtype=torch.float32)
    losses(model(x)).mean().backward()
    before = [p.grad for p in model.parameters()]
    scorer = Taylor().scorer(model, graph)
    train_batch(model, scorer, x)
    scorer.close()
    after = [p.grad for p in model.parameters()]
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_passes_without_gradient_are_not_gathered() -> None:
    model, graph, x = net()
    scorer = Taylor().scorer(model, graph)
    train_batch(model, scorer, x)
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)
    model(x)
    scorer.end_batch(examples=4)
    scorer.close()
    assert_same(scorer.scores(), scored(Taylor(), model, graph, x))


def test_a_second_derivative_goes_through_the_tap() -> None:
    model, graph, x = net()
    model.eval()

    def penalty() -> Tensor:
        x_ = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(losses(model(x_)).sum(), x_, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), next(model.parameters()))[0]

    expected = penalty()
    scorer = Taylor().scorer(model, graph)
    torch.testing.assert_close(penalty(), expected, rtol=1e-12, atol=1e-12)
    scorer.close()


def test_activations_die_with_the_graph() -> None:
    model, graph, x = net()
    alive: list[StorageWeakRef] = []
    scorer = Taylor().scorer(model, graph)
    spies = [
        layer.register_forward_hook(lambda _m, args, _out: alive.append(StorageWeakRef(args[0].untyped_storage())))
        for layer in (model.body[0], model.body[2], model.head)
    ]
    gc.disable()
    try:
        loss = losses(model(x)).mean()
        assert not any(ref.expired() for ref in alive[:2])
        loss.backward()
        del loss
        assert len(alive) == 3
        assert all(ref.expired() for ref in alive)
    finally:
        gc.enable()
        scorer.close()
        for spy in spies:
            spy.remove()


def _trace_of(model: nn.Module) -> dict[str, Any]:
    """Everything that hangs on any module, by name."""
    return {
        f"{name}.{key}": repr(value) for name, module in model.named_modules() for key, value in vars(module).items()
    }


def test_closing_leaves_nothing_on_the_model_however_often() -> None:
    model, graph, x = net()
    model(x)
    before = _trace_of(model.eval())
    scorer = Taylor().scorer(model, graph)
    assert _trace_of(model) != before
    train_batch(model, scorer, x)
    model.zero_grad()
    scorer.close()
    scorer.close()
    assert _trace_of(model) == before


def test_copies_of_a_watched_model_are_not_watched() -> None:
    model, graph, x = net()
    scorer = Taylor().scorer(model, graph)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        losses(copied(x)).mean().backward()
        scorer.end_batch(examples=4)
    assert scorer.scores() == {}
    scorer.close()


def test_linear_layers_sum_over_every_dimension_between_example_and_channel() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(4, 6, 7, 3, dtype=torch.float64)
    graph = trace_channels(model, x)
    scorer = Taylor().scorer(model, graph)
    hidden = model[1](model[0](x)).detach().requires_grad_()
    model[2](hidden).cos().sum((1, 2, 3)).mean().backward()
    assert hidden.grad is not None
    scorer.drop_batch()
    model(x).cos().sum((1, 2, 3)).mean().backward()
    scorer.end_batch(examples=4)
    scorer.close()
    assert_same(scorer.scores(), {"0": (hidden * hidden.grad * 4).sum((1, 2)).abs().mean(0).detach()})


def test_layers_without_a_batch_dimension_see_one_example() -> None:
    model = nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 4), nn.ReLU()).double()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    graph = trace_channels(model, x)
    batched, alone = Taylor().scorer(model, graph), None
    model(x).cos().sum().backward()
    batched.end_batch(examples=1)
    batched.close()
    alone = Taylor().scorer(model, graph)
    model(x[0]).cos().sum().backward()
    alone.end_batch(examples=1)
    alone.close()
    assert_same(alone.scores(), batched.scores())
