"""However the optimizer steps come about: the scores are those of the plain loop, and the fit lands and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from lightning.pytorch.callbacks import BackboneFinetuning, GradientAccumulationScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import conv

from fit.boring import Boring, loader
from fit.harness import Recording, assert_close, frozen_rate, lands, pruning, scores_of
from lightning_taylor import Gradual, TargetUnreachableError, Taylor, TaylorBatch, WeightMagnitude

FIVE = Gradual(every_n_steps=2, start_step=2, end_step=12)


class Pair(nn.Module):
    """Body and head, for what treats them differently; the body in the ways that training code knows."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.how = how
        self.body = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU())
        self.head = nn.Sequential(conv(8, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "plain":
            return self.head(self.body(x))
        # The reentrant kind wants an input with a gradient.
        x = self.body[0](x)
        return self.head(checkpoint(self.body[1:], x, use_reentrant=self.how == "reentrant"))


class Summed(Boring):
    """The loss is a sum over the examples instead of their mean."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y, reduction="sum")


class Penalised(Boring):
    """A gradient penalty: the training step has a backward pass of its own, inside of the forward pass."""

    weight = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x.requires_grad_())
        (grad,) = torch.autograd.grad(out.sum() * 100, x, create_graph=True)
        return F.cross_entropy(out, y) + self.weight * grad.square().mean()


class Manual(Boring):
    """The same step, by hand; ``backward`` is how."""

    def __init__(self, net: nn.Module, backward: str = "manual", every: int = 1) -> None:
        super().__init__(net, "SGD", lr=0.0)
        self.automatic_optimization = False
        self.backward_by, self.every = backward, every

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        if self.backward_by == "manual":
            self.manual_backward(loss / 2, retain_graph=True)
            self.manual_backward(loss / 2)
        else:
            loss.backward()
        if (batch_idx + 1) % self.every == 0:
            optimizer = self.optimizers()
            assert not isinstance(optimizer, list)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: frozen_rate(Pair), {"accumulate_grad_batches": 2, "step": 4}),
        (lambda: frozen_rate(Pair), {"others": [GradientAccumulationScheduler({0: 4, 1: 2})], "step": 2}),
        (lambda: frozen_rate(Pair), {"gradient_clip_val": 1e-3}),
        (lambda: frozen_rate(Pair), {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}),
        (lambda: Penalised(Pair(), "SGD", lr=0.0), {}),
        (lambda: Boring(Pair("plain"), "LBFGS", lr=0.0, max_iter=3), {}),
        (lambda: frozen_rate(lambda: Pair("reentrant")), {}),
        (lambda: frozen_rate(lambda: Pair("not reentrant")), {}),
        (lambda: frozen_rate(lambda: Pair().to(memory_format=torch.channels_last)), {}),
    ],
    ids="accumulated scheduled norm value penalty lbfgs reentrant checkpoint channels_last".split(),
)
def test_scores_are_those_of_the_plain_loop(make: Callable[[], Boring], options: Any, tmp_path: Path) -> None:
    """Not scored is the first batch that was traced on; all others count alike."""
    expected = scores_of(lambda: frozen_rate(Pair), tmp_path)
    assert_close(scores_of(make, tmp_path, **options), expected)


class ManualPenalty(Manual):
    """A backward pass of another quantity before the one of the loss, by hand."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x = batch[0].clone().requires_grad_()
        torch.autograd.grad(self.net(x).sum() * 100, x)
        super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    "step",
    [
        lambda: Manual(Pair()),
        lambda: Manual(Pair(), "bare"),
        lambda: Manual(Pair(), every=4),
        lambda: ManualPenalty(Pair()),
    ],
    ids="manual bare every_fourth penalty".split(),
)
def test_manual_optimization_scores_as_the_automatic_one(step: Callable[[], Boring], tmp_path: Path) -> None:
    expected = scores_of(lambda: frozen_rate(Pair), tmp_path)
    assert_close(scores_of(step, tmp_path, step=8 // getattr(step(), "every", 1)), expected)


def test_clipping_and_accumulation_do_not_show_in_the_scores_of_steps(tmp_path: Path) -> None:
    expected = scores_of(lambda: frozen_rate(Pair), tmp_path, loader(batch=16), criterion=TaylorBatch(), step=4)
    options: dict[str, Any] = {"gradient_clip_val": 1e-3, "accumulate_grad_batches": 2, "step": 4}
    # The first step is not scored where the first micro-batch was traced on: its gradients are whole all the same.
    found = scores_of(lambda: frozen_rate(Pair), tmp_path, loader(), criterion=TaylorBatch(), **options)
    assert_close(found, expected)


@pytest.mark.slow
def test_a_summed_loss_gives_the_same_ranking(tmp_path: Path) -> None:
    for criterion, factor in ((Taylor(), 8.0), (TaylorBatch(), 64.0)):
        mean = scores_of(lambda: frozen_rate(Pair), tmp_path, criterion=criterion)
        total = scores_of(lambda: Summed(Pair(), "SGD", lr=0.0), tmp_path, criterion=criterion)
        assert_close(total, {name: score_C * factor for name, score_C in mean.items()})


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2, "max_epochs": 6},
        {"others": [GradientAccumulationScheduler({0: 4, 1: 2})], "max_epochs": 6},
        {"gradient_clip_val": 1e-2},
        {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
    ],
    ids="accumulated scheduled norm value".split(),
)
def test_the_default_schedule_lands_in_every_loop(options: Any, tmp_path: Path) -> None:
    lands(Boring(zoo.Residual()), tmp_path, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Boring(zoo.OptionA(), "LBFGS", lr=0.1, max_iter=2),
        lambda: Boring(Pair("reentrant")),
        lambda: Boring(Pair("not reentrant")),
        lambda: Penalised(Pair()),
        # Not Residual: on CPUs with AVX2, torch 2.15 alone corrupts memory in the backward pass of a strided 1x1
        # convolution in this format whose width is no multiple of 8 (README, limits).
        lambda: Boring(zoo.Concat().to(memory_format=torch.channels_last)),
    ],
    ids="lbfgs reentrant checkpoint penalty channels_last".split(),
)
def test_every_kind_of_step_goes_on_after_the_events(make: Callable[[], Boring], tmp_path: Path) -> None:
    module = make()
    lands(module, tmp_path, pruner=pruning(schedule=FIVE))
    formats = [p.is_contiguous(memory_format=torch.channels_last) for p in module.parameters() if p.ndim == 4]
    assert all(formats) or not isinstance(module.net, zoo.Concat)


class Rhythm(Boring):
    """Optimizers of its own choice step when they want to."""

    def __init__(self, steps: str, optimizers: int = 1) -> None:
        super().__init__(zoo.Residual())
        self.automatic_optimization = False
        self.steps, self.many = steps, optimizers

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        lightnings = self.steps != "without Lightning"
        found = self.optimizers(use_pl_optimizer=lightnings)
        for k, optimizer in enumerate(found if isinstance(found, list) else [found]):
            due = {
                "at each fourth batch": batch_idx % 4 == 3,
                "first at the first": batch_idx % 4 == 0,
                "at three of eight": batch_idx % 8 in (2, 3, 7),
                "slower later": self.global_step < 9 or batch_idx % 4 == 3,
                "in turns": batch_idx % self.many == k,
                "without Lightning": batch_idx % 2 == 1,
                "together": True,
            }[self.steps]
            if due:
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        part = -(-len(parameters) // self.many)
        return [torch.optim.AdamW(parameters[k * part : (k + 1) * part]) for k in range(self.many)]


RHYTHMS = [
    ("at each fourth batch", 1),
    ("first at the first", 1),
    ("at three of eight", 1),
    ("slower later", 1),
    ("in turns", 2),
    ("together", 2),
    ("together", 3),
]


@pytest.mark.parametrize(
    ("steps", "optimizers", "limit"),
    [
        *((*rhythm, limit) for rhythm in RHYTHMS for limit in ({"max_epochs": 10}, {"max_epochs": 5})),
        *((*rhythm, {"max_epochs": -1, "max_steps": 24}) for rhythm in RHYTHMS),
        ("without Lightning", 1, {"max_epochs": 10}),  # which sees no step, and would not end at max_steps
    ],
)
def test_the_default_schedule_lands_whatever_the_rhythm_of_manual_steps(
    steps: str, optimizers: int, limit: dict[str, Any], tmp_path: Path
) -> None:
    """The last event comes after two thirds of the fit, though nobody knows at first how many steps that is."""
    pruner = pruning()
    lands(Rhythm(steps, optimizers), tmp_path, pruner=pruner, **limit)
    events = pruner._session.pruner.record.events
    assert events[-1].step <= 0.85 * pruner._session.progress.step + 1


class Adversarial(Boring):
    """A small GAN: two nets, two optimizers, and nothing that calls both from one module."""

    def __init__(self, order: str = "discriminator first", toggle: bool = True) -> None:
        super().__init__(nn.Identity())
        self.order, self.toggle = order, toggle
        self.automatic_optimization = False
        self.generator = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 3))
        self.discriminator = nn.Sequential(
            conv(3, 8, stride=2), nn.LeakyReLU(0.2), conv(8, 8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(288, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, noise = batch[0], torch.randn_like(batch[0])
        parts = [self.improve_discriminator, self.improve_generator]
        for part in parts if self.order == "discriminator first" else reversed(parts):
            part(real, noise)

    def improve_discriminator(self, real: Tensor, noise: Tensor) -> None:
        fake = self.generator(noise).detach()
        loss = F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(fake)).mean()
        self.step(1, loss)

    def improve_generator(self, real: Tensor, noise: Tensor) -> None:
        optimizer = self.optimizers()[0]  # type: ignore[index]
        if self.toggle:
            self.toggle_optimizer(optimizer)
        self.step(0, F.softplus(-self.discriminator(self.generator(noise))).mean())
        if self.toggle:
            self.untoggle_optimizer(optimizer)

    def step(self, index: int, loss: Tensor) -> None:
        optimizer = self.optimizers()[index]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        nets = (self.generator, self.discriminator)
        return [torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.9)) for net in nets]


@pytest.mark.parametrize(("order", "toggle"), [("discriminator first", True), ("generator first", False)])
@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()])
def test_both_nets_of_a_gan_are_pruned(criterion: Any, order: str, toggle: bool, tmp_path: Path) -> None:
    module, recording = Adversarial(order, toggle), Recording(criterion)
    still = ["generator.0.bias"]
    lands(module, tmp_path, pruner=pruning(schedule=FIVE, criterion=recording, target=0.4), still=still)
    assert set(recording.seen[0]) == {"generator.0", "generator.3", "discriminator.0", "discriminator.2"}
    assert module.generator[0].weight.shape[0] < 8 or module.generator[3].weight.shape[0] < 8
    assert module.discriminator[0].weight.shape[0] < 8 or module.discriminator[2].weight.shape[0] < 8


@pytest.mark.parametrize("scope", ["generator", "discriminator"])
def test_the_scope_says_which_net_of_a_gan_is_pruned_and_counted(scope: str, tmp_path: Path) -> None:
    module = Adversarial()
    dense = {name: t.shape for name, t in module.state_dict().items()}
    pruner = pruning(criterion=TaylorBatch(), scope=scope)
    lands(module, tmp_path, pruner=pruner)
    cut = {name.partition(".")[0] for name, t in module.state_dict().items() if t.shape != dense[name]}
    assert cut == {scope}
    assert {operation.module.partition(".")[0] for operation in pruner.graph.operations} == {scope}


@pytest.mark.slow
def test_opponents_do_not_cancel_in_the_scores(tmp_path: Path) -> None:
    """What helps the generator harms the discriminator by as much; the channel matters to both."""

    class Opposed(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            for sign in (1, -1):
                self.manual_backward(sign * Boring.training_step(self, batch, batch_idx))
                self.optimizers().step()  # type: ignore[union-attr]
                self.optimizers().zero_grad()  # type: ignore[union-attr]

    for criterion in (Taylor(), TaylorBatch()):
        expected = scores_of(lambda: Manual(Pair()), tmp_path, criterion=criterion)
        assert_close(scores_of(lambda: Opposed(Pair()), tmp_path, criterion=criterion), expected)


@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()])
def test_a_frozen_part_is_not_removed_and_the_report_says_why(criterion: Any, tmp_path: Path) -> None:
    net = Pair()
    net.body.requires_grad_(False)
    lands(Boring(net), tmp_path, pruner=pruning(target=0.9, criterion=criterion), still=["net.body"])
    assert [m.weight.shape[0] for m in (net.body[0], net.body[2])][:1] == [8]
    report = json.loads((tmp_path / "pruning.json").read_text())
    assert "net.body.0" in report["unscored"]
    assert "is a part of the model frozen" in report["unscored"]["net.body.0"]


@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()])
def test_what_a_frozen_part_keeps_out_of_reach_is_said_before_training(criterion: Any, tmp_path: Path) -> None:
    net = Pair()
    net.body.requires_grad_(False)
    before = net.head[0].weight.detach().clone()
    with pytest.raises(TargetUnreachableError, match=r"cannot score net\.body\.0"):
        lands(Boring(net), tmp_path, pruner=pruning(target=0.2, criterion=criterion), still=["net.body"])
    assert torch.equal(net.head[0].weight, before)


class Backboned(Boring):
    def __init__(self) -> None:
        net = Pair()
        super().__init__(net)
        self.backbone = net.body

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@pytest.mark.filterwarnings("ignore:.*has to wait.*")
@pytest.mark.parametrize(("criterion", "first"), [(Taylor(), False), (TaylorBatch(), True), (WeightMagnitude(), False)])
def test_a_backbone_may_be_frozen_at_first(criterion: Any, first: bool, tmp_path: Path) -> None:
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False, backbone_initial_lr=1e-3)
    # So low that the backbone has to lose channels, too.
    pruner = pruning(schedule=Gradual(4, 2, 28), criterion=criterion, target=0.2)
    module = Backboned()
    lands(module, tmp_path, pruner=pruner, others=[finetuning], first=first, max_epochs=4)
    assert module.net.body[0].weight.shape[0] < 8
