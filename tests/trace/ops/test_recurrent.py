"""Recurrent layers: what they read shrinks with it, and their hidden units go from all gates, layers and directions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exactness import difference, masked, outputs, sliced
from torch import Tensor, nn

from lightning_taylor import Taylor, TaylorBatch, trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role

X = torch.randn(3, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Frames(nn.Module):
    """Convolutions over time, a recurrent layer over what they found, and classes from its last state."""

    def __init__(self, kind: type[nn.RNNBase], **kwargs: int | bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3)
        self.rnn = kind(6, 5, **kwargs)  # type: ignore[arg-type]
        width = (self.rnn.proj_size or 5) * (2 if self.rnn.bidirectional else 1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.conv(x).relu().permute(0, 2, 1) if self.rnn.batch_first else self.conv(x).relu().permute(2, 0, 1)
        out, _ = self.rnn(steps)
        return self.head(out[:, -1] if self.rnn.batch_first else out[-1])


class Cells(nn.Module):
    """The same loop written out, from a state of zeros."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.conv, self.cell, self.head = nn.Conv1d(3, 6, 3), kind(6, 5), nn.Linear(5, 4)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.conv(x).relu().unbind(2):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


NETS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"{kind.__name__} {', '.join(options) or 'plain'}": lambda kind=kind, options=options: Frames(kind, **options)
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
        for options in (
            {}, {"batch_first": True}, {"num_layers": 2, "batch_first": True},
            {"bidirectional": True, "num_layers": 2}, {"bias": False},
        )
    },
    **{kind.__name__: lambda kind=kind: Cells(kind) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)},
}  # fmt: skip


def traced(name: str) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(1)
    model = NETS[name]().double()
    return model, trace_channels(model, X)


@pytest.mark.parametrize("name", NETS)
def test_inputs_and_hidden_units_can_go_and_the_rest_computes_the_same(name: str) -> None:
    model, graph = traced(name)
    layer = "cell" if "Cell" in name else "rnn"
    assert {group: g.size for group, g in graph.groups.items()} == {"conv": 6, layer: 5}
    for remove in ({"conv": [0, 4], layer: [1, 2, 4]}, {layer: [0]}, graph.sample(0.5)):
        smaller = sliced(model, graph, remove)
        found = smaller.get_submodule(layer)
        assert (found.input_size, found.hidden_size) == (6 - len(remove.get("conv", ())), 5 - len(remove[layer]))
        assert difference(outputs(masked(model, graph, remove), X), outputs(smaller, X)) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_what_a_recurrent_layer_reads_is_scored_by_the_gate_on_its_input(name: str) -> None:
    model, graph = traced(name)
    scorer = Taylor().scorer(model, graph)
    target = torch.tensor([0, 1, 3])
    nn.functional.cross_entropy(model(X), target).backward()
    scorer.end_batch(examples=3)
    found = scorer.scores()
    scorer.close()
    gate = torch.ones(3, 6, 1, dtype=torch.float64, requires_grad=True)
    handle = model.conv.register_forward_hook(lambda module, args, out: out * gate)
    losses = nn.functional.cross_entropy(model(X), target, reduction="none")
    (grad,) = torch.autograd.grad(losses.sum(), gate)
    handle.remove()
    torch.testing.assert_close(found["conv"].double(), grad.squeeze(2).abs().mean(0), rtol=1e-5, atol=1e-9)


class Loop(nn.Module):
    """A recurrence in the user's own words, over inputs whose first dimension is time."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.keep, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[1], 8, dtype=x.dtype)
        for step in x:
            state = (self.read(step) + self.keep(state)).tanh()
        return self.head(state)


def test_a_loop_over_time_is_not_taken_for_its_first_step() -> None:
    torch.manual_seed(0)
    model, x = Loop().double(), torch.randn(5, 2, 3, dtype=torch.float64)
    graph = trace_channels(model, x)
    assert not graph.groups
    assert "assumes its width" in graph.frozen["read"]  # the 8 of the state


class Steps(nn.Module):
    """A recurrent module over the inputs themselves, time first."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(3, 6), nn.Linear(6, 2)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_units_are_found_where_the_first_dimension_is_time(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model, x = Steps(kind).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    for given in (x, x[:1]):
        graph = trace_channels(model, given)
        assert {name: group.size for name, group in graph.groups.items()} == {"rnn": 6}
        remove = graph.sample(0.5)
        assert difference(outputs(masked(model, graph, remove), x), outputs(sliced(model, graph, remove), x)) < 1e-12


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_weight_norm_over_the_state_keeps_the_units_and_nothing_else(norm: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = Frames(nn.LSTM, batch_first=True)
    norm(model.rnn, "weight_hh_l0")
    assert set(trace_channels(model, X.float()).groups) == {"conv"}


class Gated(nn.RNNCellBase):
    """A cell of the user's own with two gates."""

    def __init__(self) -> None:
        super().__init__(6, 5, bias=True, num_chunks=2)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        made = nn.functional.linear(x, self.weight_ih, self.bias_ih)
        a, b = (made + nn.functional.linear(state, self.weight_hh, self.bias_hh)).chunk(2, 1)
        return a.sigmoid() * b.tanh()


class OwnCells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cell, self.head = nn.Conv1d(3, 6, 3), Gated(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), self.cell.hidden_size, dtype=x.dtype)
        for step in self.conv(x).unbind(2):
            state = self.cell(step, state)
        return self.head(state)


def test_a_cell_of_the_users_own_with_several_gates_is_followed() -> None:
    torch.manual_seed(0)
    model = OwnCells().double()
    graph = trace_channels(model, X)
    assert {name: group.size for name, group in graph.groups.items()} == {"conv": 6, "cell": 5}
    remove = graph.sample(0.5)
    smaller = sliced(model, graph, remove)
    assert smaller.cell.hidden_size == 5 - len(remove["cell"])
    assert difference(outputs(masked(model, graph, remove), X), outputs(smaller, X)) < 1e-12


def test_hidden_units_are_left_to_criteria_that_need_no_hook() -> None:
    model, graph = traced("LSTM plain")
    taylor, batch = Taylor().scorer(model, graph), TaylorBatch().scorer(model, graph)
    taylor.close()
    assert "rnn.weight_hh_l0" in taylor.unscorable["rnn"]
    assert not batch.unscorable


def test_a_state_of_the_users_own_keeps_the_units() -> None:
    class Given(Frames):
        def forward(self, x: Tensor) -> Tensor:
            start = torch.full((1, len(x), 5), 0.5, dtype=x.dtype)
            return self.head(self.rnn(self.conv(x).permute(2, 0, 1), start)[0][-1])

    graph = trace_channels(Given(nn.GRU).double(), X)
    assert set(graph.groups) == {"conv"}
    assert graph.groups["conv"].of(Role.CONSUMER)[0].tensor == "rnn.weight_ih_l0"


def test_a_projected_lstm_keeps_its_units_and_reads_fewer_channels() -> None:
    torch.manual_seed(0)
    model = Frames(nn.LSTM, proj_size=3).double()
    graph = trace_channels(model, X)
    assert (set(graph.groups), graph.frozen["rnn"]) == ({"conv"}, "projected by rnn")
    remove = graph.sample(0.4)
    assert difference(outputs(masked(model, graph, remove), X), outputs(sliced(model, graph, remove), X)) < 1e-12
