"""Modules as other people write them: the training step tells what belongs to the network, not a forward call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fit.boring import loader, trainer
from fit.harness import pruning, report_in
from lightning_taylor import Gradual, Taylor, TaylorBatch, TaylorPruning
from lightning_taylor.errors import TargetUnreachableError


def features(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Learner(L.LightningModule):
    """An encoder and a head; subclasses say what the step makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = features(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), 1e-3)


class WithLossNetwork(Learner):
    """A frozen network judges the features' picture, as in a perceptual loss."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 6)).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self(batch[0])
        return F.cross_entropy(out, batch[1]) + self.judge(out).pow(2).mean()


class WithLargeTeacher(Learner):
    """A wider frozen network gives the targets."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(features(24), nn.Linear(24, 2)).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = self.teacher(batch[0])
        return F.mse_loss(self(batch[0]), target)


class WithMomentum(Learner):
    """Follows its encoder by a momentum of zero, so that both must stay equal; updated in the step."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = copy.deepcopy(self.encoder).requires_grad_(False)

    def follow(self) -> None:
        with torch.no_grad():
            for fast, slow in zip(self.encoder.parameters(), self.slow.parameters(), strict=True):
                slow.mul_(0).add_(fast)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.follow()
        target = self.slow(batch[0].flip(3)).detach()
        return super().training_step(batch, batch_idx) - F.cosine_similarity(self.encoder(batch[0]), target).mean()

    def on_train_end(self) -> None:
        self.follow()


class WithMomentumAtOnce(WithMomentum):
    """The same by operators on lists of tensors, as libraries write it."""

    def follow(self) -> None:
        with torch.no_grad():
            slow, fast = list(self.slow.parameters()), list(self.encoder.parameters())
            torch._foreach_mul_(slow, 0)
            torch._foreach_add_(slow, torch._foreach_mul(fast, 1.0))


class WithMomentumAfterwards(WithMomentum):
    """The same, updated between the steps, with a buffer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.insert(1, nn.BatchNorm2d(8))
        self.slow = copy.deepcopy(self.encoder).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        target = self.slow(batch[0]).detach()
        return Learner.training_step(self, batch, batch_idx) + F.mse_loss(self.encoder(batch[0]).mean(), target.mean())

    def on_train_batch_end(self, *_: Any) -> None:
        self.follow()


class WithMomentumByHand(WithMomentum):
    """The same without a ``forward``; its first step comes before the first batch ends."""

    forward = L.LightningModule.forward

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.follow()
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        fast, slow = self.encoder(batch[0]), self.slow(batch[0].flip(3))
        self.manual_backward(F.cross_entropy(self.head(fast), batch[1]) - F.cosine_similarity(fast, slow).mean())
        optimizer.step()


class InParts(Learner):
    """The parts are called one after the other, with something between them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(F.dropout(self.encoder(batch[0]), 0.1)), batch[1])


class InThreeParts(Learner):
    """The same without a ``forward``, and with a neck."""

    forward = L.LightningModule.forward

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Linear(8, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.neck(self.encoder(batch[0])).relu()), batch[1])


class ByHand(InParts):
    """Goes back from its loss by itself, and returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class ByTensor(InParts):
    """The same by the loss's own method, and another for a second loss, as with two networks that play."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        super().training_step(batch, batch_idx).backward()
        self.head(self.encoder(batch[0].flip(3))).pow(2).mean().backward(retain_graph=True)
        optimizer.step()


class InSinglePrecision(InParts):
    """Writes its precision down, and keeps tensors that are no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.blur, self.prototypes = torch.full((3, 1, 3, 3), 1 / 9), torch.eye(2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = F.conv2d(batch[0].float(), self.blur, groups=3)
        return F.cross_entropy(self.head(self.encoder(x)).float() @ self.prototypes, batch[1])


class Hooked(Learner):
    """A forward hook carries a layer's maps to the loss, which averages over their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: dict[str, Tensor] = {}
        self.encoder[2].register_forward_hook(lambda module, args, out: self.maps.update(second=out))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.maps["second"].pow(2).mean(1).mean()


class Stashed(Learner):
    """An attribute carries them."""

    def forward(self, x: Tensor) -> Tensor:
        self.maps = self.encoder[:4](x)
        return self.head(self.encoder[4:](self.maps))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.maps.mean((1, 2, 3)).abs().mean()


class FrozenEncoder(Learner):
    def __init__(self) -> None:
        super().__init__()
        self.encoder.requires_grad_(False)


def fitted(make: Callable[[], L.LightningModule], target: float = 0.5, **kwargs: Any) -> tuple[Any, TaylorPruning]:
    torch.manual_seed(0)
    module, callback = make(), TaylorPruning(target, measure_latency=False, **kwargs)
    trainer([callback], max_epochs=2).fit(module, loader(32))
    assert callback.reached, callback.remaining
    return module, callback


@pytest.mark.parametrize(("make", "part"), [(WithLossNetwork, "judge"), (WithLargeTeacher, "teacher")])
def test_what_is_neither_deployed_nor_trained_is_neither_cut_nor_counted(make: type[Learner], part: str) -> None:
    module, callback = fitted(make)
    _, plain = fitted(Learner)
    assert callback.graph is not None
    assert plain.graph is not None
    dense = {name: tuple(t.shape) for name, t in make().state_dict().items()}
    assert all(tuple(t.shape) == dense[n] for n, t in module.state_dict().items() if n.startswith(part))
    assert module.encoder[0].out_channels < 8
    assert sum(o.flops for o in callback.graph.operations) == sum(o.flops for o in plain.graph.operations)
    assert all("part of the loss" in why for name, why in callback.graph.frozen.items() if name.startswith(part))


class Skipping(Learner):
    """Returns None for a batch, as Lightning allows, before anything has run or afterwards."""

    def __init__(self, skipped: Callable[[int], bool], *, runs: bool) -> None:
        super().__init__()
        self.skipped, self.runs = skipped, runs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        if not self.skipped(batch_idx):
            return super().training_step(batch, batch_idx)
        if self.runs:
            self(batch[0])
        return None


@pytest.mark.filterwarnings("ignore:.*returned.*None", "ignore:the event of step . has to wait")
@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize(
    "skipped", [lambda k: k == 0, lambda k: k < 3, lambda k: k % 3 == 0], ids=["first", "3", "many"]
)
def test_batches_that_the_step_skips_are_no_batches(skipped: Callable[[int], bool], runs: bool) -> None:
    module, _ = fitted(lambda: Skipping(skipped, runs=runs))
    assert module.encoder[0].out_channels + module.encoder[2].out_channels < 16


class PartlyFrozen(Learner):
    """The first block on a residual stream is frozen; it reads what the stem makes, as the second does."""

    def __init__(self, *, held: bool) -> None:
        super().__init__()
        self.held = held
        self.stem, self.first, self.second = (nn.Conv2d(i, 12, 3, padding=1) for i in (3, 12, 12))
        self.encoder, self.head = nn.Identity(), nn.Linear(12, 2)
        self.inner = nn.Conv2d(12, 12, 3, padding=1)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.first(x).relu()
        x = x + self.inner(self.second(x).relu())
        return self.head(x.mean((2, 3)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad or self.held), 1e-3)


def test_what_a_frozen_layer_reads_is_not_counted_on_unless_an_optimizer_holds_the_layer() -> None:
    with pytest.raises(TargetUnreachableError, match=r"TaylorBatch.*cannot score stem"):
        fitted(lambda: PartlyFrozen(held=False), target=0.3, criterion=TaylorBatch())
    module, _ = fitted(lambda: PartlyFrozen(held=False), target=0.75, criterion=TaylorBatch())
    assert module.stem.out_channels == 12 > module.second.out_channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AssertionError, match="flops"):  # it may have been trained later
            fitted(lambda: PartlyFrozen(held=True), target=0.3, criterion=TaylorBatch())


class WithDenseSelf(Learner):
    """Distils from what it was itself, frozen: in a submodule, or in a list that torch does not know."""

    def __init__(self, kept: str = "teacher") -> None:
        super().__init__()
        teacher = copy.deepcopy(nn.Sequential(self.encoder, self.head)).requires_grad_(False)
        self.kept = kept
        if kept == "teacher":
            self.teacher = nn.ModuleDict({"encoder": teacher[0], "head": teacher[1]})
        else:
            self.teachers = [nn.ModuleDict({"encoder": teacher[0], "head": teacher[1]})]

    @property
    def dense(self) -> Any:
        return self.teacher if self.kept == "teacher" else self.teachers[0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            wanted = self.dense["head"](self.dense["encoder"](batch[0]))
        return F.mse_loss(self(batch[0]), wanted)


@pytest.mark.parametrize("kept", ["teacher", "teachers"])
def test_a_teacher_of_the_students_shapes_stays_if_it_is_ignored(kept: str) -> None:
    module, _ = fitted(lambda: WithDenseSelf(kept), ignore=[kept])
    assert module.encoder[0].out_channels < 8
    assert module.dense["encoder"][0].out_channels == 8


def test_a_copy_that_nothing_updates_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"teacher has the shapes .* add ignore=\['teacher'\]"):
        fitted(WithDenseSelf)
    fitted(WithMomentum)  # which is an error if it warns


def test_the_report_measures_the_memory_of_the_network_alone(tmp_path: Path) -> None:
    peaks = []
    for make in (Learner, WithLossNetwork, WithLargeTeacher):
        run = trainer([pruning()], max_epochs=2, default_root_dir=tmp_path / make.__name__)
        run.fit(make(), loader(32))
        peaks.append(report_in(tmp_path / make.__name__)["environment"]["peak_bytes"]["dense"])
    assert len(set(peaks)) == 1


@pytest.mark.parametrize("make", [WithMomentum, WithMomentumAfterwards, WithMomentumByHand])
@pytest.mark.parametrize("scope", ["encoder", ["encoder", "head"]])
def test_a_copy_of_what_is_in_the_scope_goes_along(make: type[WithMomentum], scope: Any) -> None:
    module, callback = fitted(make, scope=scope)
    assert module.encoder[0].out_channels == module.slow[0].out_channels < 8
    assert callback.graph is not None
    assert not any(o.module.startswith("slow") for o in callback.graph.operations)


@pytest.mark.parametrize("make", [WithMomentum, WithMomentumAtOnce, WithMomentumAfterwards, WithMomentumByHand])
def test_a_momentum_teacher_loses_the_channels_of_its_student(make: type[WithMomentum]) -> None:
    module, _ = fitted(make)
    assert module.encoder[0].out_channels < 8
    pairs = zip(module.encoder.parameters(), module.slow.parameters(), strict=True)
    assert all(torch.equal(fast, slow) for fast, slow in pairs)


@pytest.mark.parametrize("make", [InParts, InThreeParts, ByHand, ByTensor, InSinglePrecision])
def test_what_passes_between_parts_that_are_called_apart_can_go(make: type[Learner]) -> None:
    module, callback = fitted(make, 0.2)
    assert module.encoder[2].out_channels < 8
    assert callback.graph is not None
    assert "encoder.2" not in callback.graph.frozen


@pytest.mark.parametrize(
    "make", [WithLossNetwork, WithMomentumAfterwards, WithMomentumAtOnce, InParts, Hooked, Stashed]
)
def test_an_example_input_array_hides_nothing_of_the_step(make: type[Learner]) -> None:
    def with_example() -> Learner:
        module = make()
        module.example_input_array = torch.rand(2, 3, 20, 20)
        return module

    _, callback = fitted(with_example, 0.7)
    _, plain = fitted(make, 0.7)
    assert callback.graph is not None
    assert plain.graph is not None
    assert callback.graph.dense.keys() == plain.graph.dense.keys()
    assert callback.graph.groups.keys() == plain.graph.groups.keys()
    assert callback.graph.frozen == plain.graph.frozen
    # The FLOPs are those of the example's size.
    first, same = (next(o.flops for o in c.graph.operations if o.module == "encoder.0") for c in (callback, plain))
    assert first / same == pytest.approx((20 / 12) ** 2)


@pytest.mark.parametrize("make", [Hooked, Stashed])
def test_what_the_loss_reads_past_the_calls_stays(make: type[Learner]) -> None:
    module, callback = fitted(make, 0.7)
    assert module.encoder[2].out_channels == 8
    assert callback.graph is not None
    assert "reduced over the channels" in callback.graph.frozen["encoder.2"]


def test_a_target_that_no_gradient_can_reach_is_an_error_before_the_first_step() -> None:
    module = FrozenEncoder()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(TargetUnreachableError, match="gradient"):
        trainer([TaylorPruning(0.5, criterion=Taylor())], max_epochs=1).fit(module, loader(32))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def stacked(views: list[Tensor]) -> Tensor:
    return torch.stack(views, 1).flatten(0, 1)


JOINS: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "two views": lambda views: [torch.cat(views[:2])],
    "three views": lambda views: [torch.cat(views)],
    "views of an image side by side": lambda views: [stacked(views)],
    "a call for each view": lambda views: views,
    "chunks of images with their views": lambda views: list(stacked(views).chunk(2)),
    "chunks of views": lambda views: list(torch.cat(views).chunk(4)),
    "only some of the images": lambda views: [torch.cat([view[view[:, 0, 0, 0] > 0.5] for view in views[:1]])],
}


class Views(L.LightningModule):
    """Joins views of its images in one batch; learning rate zero, so that scores can be computed afterwards."""

    def __init__(self, join: Callable[[list[Tensor]], list[Tensor]]) -> None:
        super().__init__()
        self.join = join
        self.make, self.read = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def loss(self, images: Tensor, gate: Tensor | float = 1.0) -> Tensor:
        calls = self.join([images.roll(i, 3) for i in range(3)])
        return torch.stack([self.read(self.make(x).relu() * gate).pow(2).sum() for x in calls]).sum() / len(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class ReadByOthers(Views):
    """Reads with a weight twice: once its module does, once a function that is given the weight."""

    def loss(self, images: Tensor, gate: Tensor | float = 1.0) -> Tensor:
        made = self.make(images).relu()
        return (self.read(made * gate) + F.conv2d(made.roll(1, 2) ** 2 * gate, self.read.weight)).pow(2).mean()


class Kept(Taylor):
    """``Taylor`` that shows the scores of its only event."""

    last: ClassVar[dict[str, Tensor]] = {}

    def scorer(self, model: nn.Module, graph: Any, *, event: int = 0) -> Any:
        scorer = super().scorer(model, graph, event=event)
        scores = scorer.scores

        def keep() -> dict[str, Tensor]:
            Kept.last = scores()
            return Kept.last

        scorer.scores = keep  # type: ignore[method-assign]
        return scorer


@pytest.mark.parametrize(
    "make",
    [*(partial(Views, join) for join in JOINS.values()), partial(ReadByOthers, lambda views: views)],
    ids=[*JOINS, "a weight that a function reads with, too"],
)
def test_an_example_is_all_of_its_rows(make: Callable[[], Views]) -> None:
    torch.manual_seed(0)
    module = make()
    whole = copy.deepcopy(module)
    schedule = Gradual(every_n_steps=4, start_step=0, end_step=4)
    callback = TaylorPruning(0.7, schedule, Kept(), normalization="none", measure_latency=False)
    trainer([callback], max_epochs=1).fit(module, loader(32))
    assert type(module.read.weight) is nn.Parameter
    images = torch.stack([x for x, _ in loader(32).dataset])[8:]  # the first batch goes to the trace
    total = torch.zeros(6)
    for image in images:
        gate = torch.ones(1, 6, 1, 1, requires_grad=True)
        total += torch.autograd.grad(whole.loss(image[None], gate), gate)[0].flatten().abs()
    torch.testing.assert_close(Kept.last["make"], total / len(images), rtol=1e-4, atol=1e-6)
