"""The surgery is exact, in place, and leaves nothing of what it removed."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.types import Role
from lightning_taylor.surgery.prune import prune_channels

from .nets import C, Chain, P, Perceptron, Residual, batches, build, graph_of
from .reference import lost, mask, named_state, named_tensors, snapshot, train, without

NETS = [Chain, Residual, Perceptron]


@pytest.mark.parametrize("cls", NETS)
@pytest.mark.parametrize("seed", range(4))
def test_the_small_network_computes_what_the_masked_one_does(cls: type, seed: int) -> None:
    model, twin = build(cls), build(cls)
    graph = model.graph()
    remove = graph.sample(0.6, torch.Generator().manual_seed(seed))
    mask(twin, lost(graph, remove, Role.CONSUMER))
    smaller = prune_channels(model, graph, remove)
    for training in (True, False):
        x = batches(model, 1)[0][0]
        torch.testing.assert_close(model.train(training)(x), twin.train(training)(x), rtol=1e-12, atol=1e-13)
    assert {n: tuple(t.shape) for n, t in named_tensors(model).items()} == smaller.shapes
    assert all(smaller.groups[n].size == graph.groups[n].size - len(remove.get(n, ())) for n in graph.groups)


@pytest.mark.parametrize("cls", NETS)
def test_an_empty_removal_changes_nothing(cls: type) -> None:
    model = build(cls)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, [optimizer], batches(model, 2), {})
    before = snapshot(model, [optimizer])
    graph = model.graph()
    for remove in ({}, {next(iter(graph.groups)): []}):
        assert prune_channels(model, graph, remove, optimizers=[optimizer]).shapes == graph.shapes
        assert snapshot(model, [optimizer]) == before


@pytest.mark.parametrize("cls", NETS)
def test_two_events_equal_one_with_their_indices_composed(cls: type) -> None:
    once, twice = build(cls), build(cls)
    graph = once.graph()
    generator = torch.Generator().manual_seed(0)
    first = graph.sample(0.3, generator)
    optimizers = [torch.optim.Adam(model.parameters()) for model in (once, twice)]
    for model, optimizer in zip((once, twice), optimizers, strict=True):
        train(model, [optimizer], batches(model, 2), {})
    middle = prune_channels(twice, graph, first, optimizers=optimizers[1:])
    second = middle.sample(0.5, generator)
    end = prune_channels(twice, middle, second, optimizers=optimizers[1:])
    both = {}
    for name, group in graph.groups.items():
        left = [c for c in range(group.size) if c not in first.get(name, torch.tensor([])).tolist()]
        gone = [left[int(c)] for c in second.get(name, ())]
        both[name] = sorted([*gone, *first.get(name, torch.tensor([])).tolist()])
    direct = prune_channels(once, graph, both, optimizers=optimizers[:1])
    torch.testing.assert_close(named_tensors(twice), named_tensors(once), rtol=0, atol=0)
    states = [named_state(m, [o]) for m, o in zip((once, twice), optimizers, strict=True)]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    assert end.shapes == direct.shapes
    for name, group in end.groups.items():
        for mine, theirs in zip(group.slices, direct.groups[name].slices, strict=True):
            assert torch.equal(mine.index, theirs.index)


def test_every_tensor_stays_the_same_object_and_only_touched_ones_change_their_storage() -> None:
    model = build(Chain)
    objects = {n: (t, t.data_ptr()) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    values = {n: t.detach().clone() for n, (t, _) in objects.items()}
    graph = model.graph()
    prune_channels(model, graph, {"a": [1, 4]})
    gone = lost(graph, {"a": [1, 4]})
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        old, pointer = objects[name]
        assert tensor is old
        assert (tensor.data_ptr() == pointer) == (name not in gone)
        assert torch.equal(tensor, without(values[name], gone.get(name, {})))


def test_the_old_storages_are_freed() -> None:
    model = build(Chain)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, [optimizer], batches(model, 1), {})
    graph = model.graph()
    touched = [t for n, t in [*model.named_parameters(), *model.named_buffers()] if n in lost(graph, {"a": [1]})]
    touched += [t.grad for t in touched if t.grad is not None]
    touched += [
        v for (_, n, k), v in named_state(model, [optimizer]).items() if n in lost(graph, {"a": [1]}) and k != "step"
    ]
    storages = [StorageWeakRef(t.untyped_storage()) for t in touched]
    del touched
    assert not any(s.expired() for s in storages)
    prune_channels(model, graph, {"a": [1]}, optimizers=[optimizer])
    assert all(s.expired() for s in storages)
    for tensor in model.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_gradients_are_dropped_where_channels_go_and_only_there() -> None:
    model = build(Chain)
    train(model, [], batches(model, 1), {})
    grads = {n: p.grad for n, p in model.named_parameters()}
    graph = model.graph()
    prune_channels(model, graph, {"a": [1]})
    gone = lost(graph, {"a": [1]})
    for name, p in model.named_parameters():
        assert p.grad is (None if name in gone else grads[name])


def test_frozen_parameters_stay_frozen_and_others_do_not() -> None:
    model = build(Chain)
    model.a.requires_grad_(False)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    prune_channels(model, model.graph(), {"a": [1], "b": [0]})
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_survive(dtype: torch.dtype) -> None:
    model = build(Perceptron).to(dtype)
    prune_channels(model, model.graph(), {"a": [1], "b": [0]})
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_channels_last_survives_in_parameters_and_moments() -> None:
    model = build(Chain).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, [optimizer], batches(model, 1), {})
    prune_channels(model, model.graph(), {"a": [1], "b": [0]}, optimizers=[optimizer])
    for weight in (model.a.weight, model.b.weight):
        for tensor in (weight, optimizer.state[weight]["exp_avg"]):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            assert not tensor.is_contiguous()


class Tied(nn.Module):
    inputs = (4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight
        self.again = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.a(x).relu() * self.b(x))


def test_tied_weights_and_shared_modules_stay_tied() -> None:
    model, twin = build(Tied), build(Tied)
    places = [("a.weight", 0, P), ("a.bias", 0, P), ("b.bias", 0, P), ("head.weight", 1, C)]
    graph = graph_of(model, {"a": (6, places)})
    mask(twin, lost(graph, {"a": [0, 3]}, Role.CONSUMER))
    prune_channels(model, graph, {"a": [0, 3]})
    assert model.a.weight is model.b.weight
    assert model.head is model.again
    assert (model.a.out_features, model.b.out_features, model.again.in_features) == (4, 4, 4)
    x = batches(model, 1)[0][0]
    torch.testing.assert_close(model(x), twin(x), rtol=1e-12, atol=1e-13)


def test_training_goes_on_while_an_old_loss_is_still_held() -> None:
    model = build(Chain)
    data = batches(model, 2)
    calls = []
    model.a.weight.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.shape))
    held = nn.functional.cross_entropy(model(data[0][0]), data[0][1])
    held.backward(retain_graph=True)
    prune_channels(model, model.graph(), {"a": [1]})
    train(model, [torch.optim.SGD(model.parameters(), lr=0.1)], data[1:], {})
    assert calls == [(6, 3, 3, 3), (5, 3, 3, 3)]


def test_schedulers_keep_steering_the_same_groups() -> None:
    model = build(Chain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    group = optimizer.param_groups[0]
    train(model, [optimizer], batches(model, 1), {})
    prune_channels(model, model.graph(), {"a": [1]}, optimizers=[optimizer])
    scheduler.step()
    assert optimizer.param_groups[0] is group
    assert group["lr"] == 0.05


def test_it_works_in_inference_mode_and_training_goes_on() -> None:
    model = build(Chain)
    optimizer = torch.optim.Adam(model.parameters())
    data = batches(model, 2)
    train(model, [optimizer], data[:1], {})
    with torch.inference_mode():
        prune_channels(model, model.graph(), {"a": [1], "b": [2]}, optimizers=[optimizer])
    assert not any(t.is_inference() for t in named_state(model, [optimizer]).values())
    train(model, [optimizer], data[1:], {})


def test_it_works_from_another_thread() -> None:
    model, twin = build(Chain), build(Chain)
    thread = threading.Thread(target=prune_channels, args=(model, model.graph(), {"a": [1], "b": [2]}))
    thread.start()
    thread.join()
    prune_channels(twin, twin.graph(), {"a": [1], "b": [2]})
    torch.testing.assert_close(named_tensors(model), named_tensors(twin), rtol=0, atol=0)


def test_an_averaged_copy_takes_the_same_surgery() -> None:
    model = build(Chain)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    graph = model.graph()
    for net in (model, averaged.module):
        prune_channels(net, graph, {"a": [1], "b": [2]})
    averaged.update_parameters(model)


def test_a_model_that_is_not_the_traced_one_is_refused_untouched() -> None:
    for replace, message in (
        (lambda m: setattr(m, "b", nn.Conv2d(5, 5, 3)), r"'b.weight' has shape \(5, 5, 3, 3\), .* says \(5, 6, 3, 3\)"),
        (lambda m: setattr(m, "b", nn.Conv2d(6, 5, 1)), r"'b.weight' has shape .* trace it again"),
        (lambda m: setattr(m, "b", nn.Identity()), r"cuts 'b.weight', .* no parameter or buffer of that name"),
    ):
        model = build(Chain)
        graph = model.graph()
        replace(model)
        before = snapshot(model)
        with pytest.raises(UncoupledChannelsError, match=message):
            prune_channels(model, graph, {"a": [1]})
        assert snapshot(model) == before


def test_a_bad_decision_is_refused_untouched() -> None:
    model = build(Chain)
    before = snapshot(model)
    for remove in ({"c": [0]}, {"a": [6]}, {"a": [1, 1]}, {"a": list(range(6))}):
        with pytest.raises(ValueError, match="group"):
            prune_channels(model, model.graph(), remove)
    assert snapshot(model) == before


def test_a_pruned_model_can_be_copied_and_saved() -> None:
    model = build(Chain)
    prune_channels(model, model.graph(), {"a": [1], "b": [2]})
    clone = copy.deepcopy(model)
    clone.load_state_dict(model.state_dict())
    x = batches(model, 1)[0][0]
    assert torch.equal(model.eval()(x), clone.eval()(x))
