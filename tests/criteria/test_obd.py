"""``OBD`` is the diagonal of the Hessian by gates at the consumers' inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scores.gates import assert_same, case, losses, scored
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from zoo import NETS, conv

from lightning_taylor.criteria.base import Scorer
from lightning_taylor.criteria.combined import Combined
from lightning_taylor.criteria.obd import OBD, draw_signs
from lightning_taylor.criteria.taylor import Taylor
from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.trace.api import trace_channels


def train(model: nn.Module, scorer: Scorer, x: Tensor, *, scale: float = 1.0) -> None:
    model.zero_grad()
    loss = losses(model(x)).mean() * scale
    scorer.on_loss(loss)
    scorer.before_backward()
    loss.backward()
    scorer.after_backward()
    scorer.end_batch(examples=len(x), grad_scale=scale)


def run(criterion: OBD, model: nn.Module, graph: ChannelGraph, *batches: Tensor) -> dict[str, Tensor]:
    scorer = criterion.scorer(model, graph)
    for x in batches:
        train(model, scorer, x)
    scorer.close()
    return scorer.scores()


def hessian(model: nn.Module, graph: ChannelGraph, x: Tensor) -> Tensor:
    """Shape ``(C, C)``, of all groups' channels: the Hessian of the mean loss by gates on the consumers' weights."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def loss(gate_C: Tensor) -> Tensor:
        changed: dict[str, Tensor] = {}
        start = 0
        for group in graph.groups.values():
            for s in group.of(Role.CONSUMER, Role.QUERY):
                tensor = changed.get(s.tensor, tensors[s.tensor].detach())
                gates = gate_C[start : start + group.size].repeat_interleave(s.index.shape[1])
                along = torch.ones(tensor.shape[s.dim], dtype=x.dtype).index_put((s.index.flatten(),), gates)
                changed[s.tensor] = tensor * along.view([-1 if d == s.dim else 1 for d in range(tensor.ndim)])
            start += group.size
        return losses(functional_call(model, changed, (x,))).mean()

    size = sum(group.size for group in graph.groups.values())
    found = torch.autograd.functional.hessian(loss, torch.ones(size, dtype=x.dtype))
    assert isinstance(found, Tensor)
    return found


def split(graph: ChannelGraph, score_C: Tensor) -> dict[str, Tensor]:
    sizes = [group.size for group in graph.groups.values()]
    return dict(zip(graph.groups, score_C.split(sizes), strict=True))


# Of the window attention even the plain Hessian is not finite everywhere.
@pytest.mark.parametrize("name", [n for n in NETS if n not in ("shared", "auxiliary", "hard_coded", "windows")])
def test_each_probe_is_an_exact_product_with_the_hessian(name: str) -> None:
    model, graph, x = case(name)
    with sdpa_kernel(SDPBackend.MATH):
        H = hessian(model, graph, x)
        found = run(OBD(seed=5), model, graph, x)
    probe_C = draw_signs("5/0/1", len(H), 1)[:, 0].double()
    assert found
    expected = split(graph, probe_C * (H @ probe_C))
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["vgg", "residual", "concat", "decoder", "line"])
def test_each_example_has_signs_of_its_own_where_the_batch_is_known(name: str) -> None:
    model, graph, x = case(name, examples=4)
    scorer = OBD().scorer(model, graph)
    scorer.on_batch((x, torch.arange(4)))
    train(model, scorer, x)
    scorer.close()
    hessians = [hessian(model, graph, example) for example in x.split(1)]
    probe_CN = draw_signs("0/0/1", len(hessians[0]), 4).double()
    expected = sum(v * (H @ v) for H, v in zip(hessians, probe_CN.unbind(1), strict=True)) / 4
    assert_same(scorer.scores(), split(graph, expected))  # type: ignore[arg-type]


def test_windows_folded_into_the_batch_share_the_signs_of_their_example() -> None:
    class Clips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x_NWKHW: Tensor) -> Tensor:
            return self.net(x_NWKHW.flatten(0, 1)).unflatten(0, x_NWKHW.shape[:2]).mean(1)

    model, x = Clips().double(), torch.randn(3, 2, 3, 8, 8, dtype=torch.float64)
    graph = trace_channels(model, x)
    scorer = OBD().scorer(model, graph)
    scorer.on_batch(x)
    train(model, scorer, x)
    scorer.close()
    hessians = [hessian(model, graph, example) for example in x.split(1)]
    probe_CN = draw_signs("0/0/1", len(hessians[0]), 3).double()
    expected = sum(v * (H @ v) for H, v in zip(hessians, probe_CN.unbind(1), strict=True)) / 3
    assert_same(scorer.scores(), split(graph, expected))  # type: ignore[arg-type]


@pytest.mark.slow
def test_many_probes_approach_the_exact_second_derivatives() -> None:
    model, graph, x = case("vgg")
    H = hessian(model, graph, x)
    found = run(OBD(probes=400), model, graph, x)
    error_C = ((H.square().sum(1) - H.diagonal().square()) / 400).sqrt()
    for name, score_C in split(graph, H.diagonal()).items():
        assert bool(((found[name] - score_C).abs() <= 4.5 * split(graph, error_C)[name]).all())
    assert float(error_C.max()) < 0.2 * float(H.diagonal().abs().max())


def test_batches_are_averaged_by_their_examples_and_the_scale_cancels() -> None:
    model, graph, x = case("residual", examples=5)
    found = run(OBD(probes=2), model, graph, x[:2], x[2:])
    parts = []
    for place, part in ((0, x[:2]), (2, x[2:])):
        H = hessian(model, graph, part)
        probes = [draw_signs(f"0/0/{place + n}", len(H), 1)[:, 0].double() for n in (1, 2)]
        parts.append(len(part) * sum(v * (H @ v) for v in probes) / 2)
    assert_same(found, split(graph, sum(parts) / 5))  # type: ignore[arg-type]
    scorer = OBD().scorer(model, graph)
    train(model, scorer, x, scale=64.0)
    scorer.close()
    assert_same(scorer.scores(), run(OBD(), model, graph, x))


def test_the_users_gradients_and_random_numbers_are_untouched() -> None:
    model, graph, x = case("residual")
    model.train()
    twin, _, _ = case("residual")
    twin.train()
    losses(twin(x)).mean().backward()
    state = torch.get_rng_state()
    run(OBD(probes=3), model, graph, x)
    assert torch.equal(state, torch.get_rng_state())
    for (name, p), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-12, atol=1e-14, msg=name)
    for mine, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, other)


def test_a_relu_net_behind_its_gates_is_never_negative() -> None:
    net = nn.Sequential(
        conv(3, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 4),
    ).double()  # fmt: skip
    x, y = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 4
    graph = trace_channels(net, x)
    sums = {name: torch.zeros(group.size) for name, group in graph.groups.items()}
    # The rows of a Hadamard matrix are probes whose mean is the diagonal itself.
    for row in _hadamard(16)[:, :11]:
        scorer = OBD().scorer(net, graph)
        scorer._draw = lambda _, row=row: row[:, None]  # type: ignore[attr-defined]
        loss = F.cross_entropy(net(x), y)
        scorer.on_loss(loss)
        scorer.end_batch(examples=8)
        scorer.close()
        sums = {name: total + scorer.scores()[name] / 16 for name, total in sums.items()}
    assert all(bool((total >= -1e-7).all()) for total in sums.values())
    assert all(bool(total.any()) for total in sums.values())


def _hadamard(size: int) -> Tensor:
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < size:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def test_checkpointed_layers_are_seen() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 6))
            self.body, self.head = nn.Sequential(conv(6, 5), nn.ReLU(), conv(5, 4)), conv(4, 2)
            self.reentrant: bool | None = None

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
            return self.head(F.relu(x)).mean((2, 3))

    model, x = Net().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    graph = trace_channels(model, x)
    plain = run(OBD(), model, graph, x, x)
    model.reentrant = False
    assert_same(run(OBD(), model, graph, x, x), plain)
    model.reentrant = True
    scorer = OBD().scorer(model, graph)
    with pytest.raises(UnsupportedModelError, match=r"differentiates the loss twice.*Taylor\(\)"):
        train(model, scorer, x)
    scorer.close()


def test_an_evaluation_that_is_repeated_counts_once() -> None:
    model, graph, x = case("vgg")
    scorer = OBD().scorer(model, graph)
    scorer.on_loss(losses(model(10 * x)).mean())
    scorer.drop_batch()
    scorer._draws = 0  # type: ignore[attr-defined]
    train(model, scorer, x)
    scorer.close()
    assert_same(scorer.scores(), run(OBD(), model, graph, x))


def test_half_gathered_probes_go_on_where_they_were() -> None:
    model, graph, x = case("concat", examples=4)
    first = OBD().scorer(model, graph)
    train(model, first, x[:3])
    first.close()
    second = OBD().scorer(model, graph)
    second.load_state(first.state())
    train(model, second, x[3:])
    second.close()
    whole = run(OBD(), model, graph, x[:3], x[3:])
    assert all(torch.equal(second.scores()[name], score_C) for name, score_C in whole.items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_dropped(bad: float) -> None:
    model, graph, x = case("vgg")
    broken = x.clone()
    broken[0, 0, 0, 0] = bad
    scorer, clean = OBD().scorer(model, graph), OBD().scorer(model, graph)
    clean.close()
    train(model, scorer, broken)
    assert scorer.scores() == {}
    train(model, scorer, x)
    scorer.close()
    assert set(scorer.scores()) == set(graph.groups)


def test_no_gate_is_left_and_none_is_needed_without_a_loss() -> None:
    model, graph, x = case("residual")
    expected = model(x)
    scorer = OBD().scorer(model, graph)
    assert torch.equal(model(x), expected)
    scorer.end_batch(examples=3)
    assert scorer.scores() == {}
    scorer.close()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_passes_of_its_own_do_not_reach_the_criterion_beside_it() -> None:
    model, graph, x = case("residual")
    expected = scored(Taylor(), model, graph, x)
    for pair in ((Taylor(), OBD(2)), (OBD(2), Taylor())):
        both = Combined(*pair, share=0.0 if isinstance(pair[0], Taylor) else 1.0, normalization="none")
        scorer = both.scorer(model, graph)
        train(model, scorer, x)
        scorer.close()
        assert_same(scorer.scores(), expected)


@pytest.mark.parametrize("settings", [{"probes": 0}, {"probes": True}, {"seed": 1.5}])
def test_wrong_settings_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        OBD(**settings)  # type: ignore[arg-type]
