"""A pass without data does what a pass with data does: the same operators, shapes and bytes."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn
from torchvision import models

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.measure.dry_pass import DryPass, OperatorCall, TensorSpec
from lightning_taylor.measure.memory import byte_curve
from lightning_taylor.measure.operator_times import timer_on
from lightning_taylor.measure.savings import Savings
from lightning_taylor.modules.resize import with_shapes
from lightning_taylor.trace.api import trace_channels
from lightning_taylor.utilities.calls import ForwardCall

CPU = torch.device("cpu")


ATTENTIONS = {"heads", "heads_inside", "heads_separate", "multihead", "windows"}
"""On a CPU their attentions run code that keeps less than what every device has."""


def check(model: nn.Module, x: torch.Tensor, *, exact: bool = True) -> None:
    model, graph = model.eval(), trace_channels(model, x)
    dry = DryPass(model, [ForwardCall("", (x[:1],))], len(x), graph.followers)
    for fraction in (0.0, 0.5, 0.5):  # the second time from what the first one found out
        shapes = graph.shrink(graph.sample(fraction)).shapes
        net = with_shapes(model, shapes, graph.followers)
        held = [*net.parameters(), *net.buffers(), x]
        alive, real = max(dry(shapes)[1]), max(byte_curve(lambda net=net: net(x), held))
        # A batch norm hands on two statistics that nobody reads, of C entries or of none.
        assert alive == pytest.approx(real, rel=0.02) if exact else real <= alive < 2 * real


@pytest.mark.parametrize("name", sorted(zoo.NETS))
def test_as_many_bytes_are_alive_as_with_data_at_any_widths(name: str) -> None:
    check(*zoo.build(name), exact=name not in ATTENTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5"])
def test_as_many_bytes_are_alive_in_nets_of_torchvision(name: str) -> None:
    check(getattr(models, name)(num_classes=10), torch.rand(2, 3, 32, 32))


def test_an_operator_in_place_makes_no_new_tensor() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    operators, alive = DryPass(net.eval(), [ForwardCall("", (torch.rand(1, 4),))], 5)({})
    assert [str(call.func) for call in operators] == ["aten.addmm.default", "aten.relu_.default", "aten.addmm.default"]
    assert max(alive) - alive[0] == 4 * (5 * 8 + 5 * 2)  # the hidden activations once, and the output


def test_a_call_is_made_of_tensors_that_lie_in_memory_as_the_networks_do() -> None:
    x = torch.rand(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    spec = TensorSpec.of(x)
    assert spec.tensor(CPU).stride() == x.stride()
    assert TensorSpec.of(torch.rand(3, 4).t()).tensor(CPU).stride() == (1, 4)
    call = OperatorCall(torch.ops.aten.relu.default, (spec,), torch.utils._pytree.tree_structure(((0,), {})))
    assert call.on(CPU)().shape == x.shape


class Picky(nn.Module):
    """It looks at its numbers to know what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        return self.two(x * 2 if float(x.sum()) > 1e6 else x)


def test_a_network_that_needs_its_numbers_is_refused_in_words() -> None:
    net = Picky().eval()
    graph = trace_channels(net, torch.rand(1, 4))
    dry = DryPass(net, [ForwardCall("", (torch.rand(1, 4),))], 2, graph.followers)
    with pytest.raises(UnsupportedModelError, match="it cannot run without data"):
        Savings(dry, graph, timer_on(CPU)).memory(graph, 0.5)
