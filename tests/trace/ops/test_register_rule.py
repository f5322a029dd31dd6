"""A user's own operators: frozen without a rule, pruned exactly with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import difference, masked, outputs, sliced
from fit.boring import Boring, loader, trainer
from torch import Tensor, nn

from lightning_taylor import OneShot, TaylorPruning, UnsupportedModelError, trace_channels
from lightning_taylor.extend import (
    Call,
    Labels,
    consume_channels,
    produce_channels,
    register_rule,
    tie_vector,
    unregister_rule,
)


@torch.library.custom_op("ltest::scale_shift", mutates_args=())
def scale_shift(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return x * gain[:, None, None] + shift[:, None, None]


@torch.library.custom_op("ltest::linear_silu", mutates_args=())
def linear_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.silu(F.linear(x, weight, bias))


def differentiable(op: Any, plain: Callable[..., Tensor]) -> None:
    """Give an operator the gradient of the plain function."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(plain(*inputs), inputs, gradient)

    op.register_autograd(backward, setup_context=setup)


differentiable(scale_shift, lambda x, gain, shift: x * gain[:, None, None] + shift[:, None, None])
differentiable(linear_silu, lambda x, weight, bias: F.silu(F.linear(x, weight, bias)))


class ScaleShift(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.shift = (nn.Parameter(torch.rand(channels) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return scale_shift(x, self.gain, self.shift)


class FusedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear_silu(input, self.weight, self.bias)


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), ScaleShift(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            FusedLinear(8, 12), nn.Linear(12, 5),
        )  # fmt: skip


def scale_shift_rule(call: Call) -> Labels | None:
    x = call.labels("x")
    tie_vector(call, x, "gain", dim=1)
    tie_vector(call, x, "shift", dim=1)
    return x


def linear_silu_rule(call: Call) -> Labels | None:
    consume_channels(call, call.labels("x"), "weight", dim=-1, weight_dim=1)
    return produce_channels(call, "weight", "bias", dim=-1, weight_dim=0)


@pytest.fixture
def rules() -> Iterator[None]:
    register_rule(scale_shift)(scale_shift_rule)
    register_rule([torch.ops.ltest.linear_silu])(linear_silu_rule)
    yield
    unregister_rule(scale_shift)
    unregister_rule("ltest::linear_silu")


def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_without_a_rule_the_layers_around_are_frozen_by_the_operators_name() -> None:
    graph = trace_channels(net(), X)
    assert not graph.groups
    assert graph.frozen["0"].startswith("no rule for scale_shift in 1, test_register_rule.py:")
    register_rule(scale_shift)(scale_shift_rule)
    assert trace_channels(net(), X).frozen["0"].startswith("no rule for linear_silu in 5")
    unregister_rule(scale_shift)


def test_with_rules_the_layers_are_pruned_exactly(rules: None) -> None:
    model = net()
    graph = trace_channels(model, X)
    assert {name: group.size for name, group in graph.groups.items()} == {"0": 8, "5": 12}
    assert {s.tensor for s in graph.groups["0"].slices} == {"0.weight", "0.bias", "1.gain", "1.shift", "5.weight"}
    remove = {"0": [0, 3, 4], "5": [1, 11]}
    assert difference(outputs(masked(model, graph, remove), X), outputs(sliced(model, graph, remove), X)) < 1e-10


def test_a_wrong_rule_is_found_out_by_the_proof(rules: None) -> None:
    unregister_rule(scale_shift)
    register_rule(scale_shift)(lambda call: call.labels("x"))
    assert "0" not in trace_channels(net(), X).groups


def test_a_fit_prunes_through_a_users_operators(rules: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, callback = Boring(Net()), TaylorPruning(0.5, schedule=OneShot(4), measure_latency=False)
    trainer([callback], default_root_dir=tmp_path, max_epochs=1).fit(module, loader())
    conv, scaled, linear = (module.net[i] for i in (0, 1, 5))
    assert len(conv.weight) == len(scaled.gain) == len(scaled.shift) == linear.weight.shape[1] == linear.in_features
    assert len(conv.weight) < 8


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        ("scale_shift", ValueError, "no namespace; write it as in 'mylib::scale_shift'"),
        (torch.relu, TypeError, "for an operator such as torch.ops"),
        ([torch.ops.ltest.scale_shift.default], ValueError, "ltest::scale_shift has a rule already"),
    ],
)
def test_what_cannot_be_registered_is_said(rules: None, target: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        register_rule(target)


def test_labels_of_a_wrong_shape_are_said(rules: None) -> None:
    unregister_rule(scale_shift)
    register_rule(scale_shift)(lambda call: Labels(tuple(slot[0] for slot in call.labels("x").slots)))
    with pytest.raises(UnsupportedModelError, match=r"rule of scale_shift returned labels of shape \(8, 6, 6\)"):
        trace_channels(net(), X)


def test_an_operator_that_is_called_like_one_of_torchs_is_not_taken_for_it() -> None:
    @torch.library.custom_op("ltest::relu", mutates_args=())
    def cumulated(x: Tensor) -> Tensor:
        return x.cumsum(1)

    class Cumulated(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[1](cumulated(self[0](input)))

    graph = trace_channels(Cumulated(nn.Linear(4, 8), nn.Linear(8, 2)), torch.rand(2, 4))
    assert graph.frozen["0"].startswith("no rule for relu in the model itself")
