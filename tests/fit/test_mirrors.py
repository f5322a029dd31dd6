"""Whatever mirrors the parameters follows them: optimizers, schedules, averages, shadows. Or it is named.

The twin of a pruned fit is a dense one whose consumers ignore the same channels from the same step on. What is left of
its tensors without those channels must be what the pruned fit ends with, the averages included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import zoo
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from fit.boring import Boring, loader, trainer
from fit.harness import Recording, fit, lands, pruning
from lightning_taylor import Gradual, OneShot
from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role

STEP = 10  # of the only event, in the second of three epochs of eight steps
Averager = Callable[[], L.Callback]


class Masked(L.Callback):
    """From one step on the consumers ignore some channels, and their weights for them stay as they are."""

    def __init__(self, graph: ChannelGraph, remove: Mapping[str, Sequence[int]]) -> None:
        slices = [
            (s, torch.tensor(index)) for name, index in remove.items() for s in graph.groups[name].of(Role.CONSUMER)
        ]
        self.rows = [(s.tensor, s.dim, s.index[index].flatten()) for s, index in slices]

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if trainer.global_step >= STEP:
            for name, dim, rows in self.rows:
                grad = pl_module.get_parameter(name).grad
                if grad is not None:
                    grad.index_fill_(dim, rows, 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        averages = [vars(callback).get("_average_model") for callback in trainer.callbacks]  # type: ignore[attr-defined]
        modules = [getattr(average, "module", average) for average in averages if average is not None]
        for module in (pl_module, *modules) if trainer.global_step >= STEP else ():
            for name, dim, rows in self.rows:
                module.get_parameter(name).detach().index_fill_(dim, rows, 0)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in [*module.named_parameters(), *module.named_buffers()]}


def kept(run: L.Trainer, averager: L.Callback | None) -> dict[str, dict[str, Tensor]]:
    """What a fit has learnt: weights, optimizer state by kind, and whatever the averaging callback holds."""
    module = run.lightning_module
    found = {"model": tensors_of(module)}
    names = {p: name for name, p in module.named_parameters()}
    for i, optimizer in enumerate(run.optimizers):
        for p, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    found.setdefault(f"{i} {key}", {})[names[p]] = value
    average = getattr(averager, "_average_model", None) or getattr(averager, "shadow", None)
    if isinstance(average, nn.Module):
        found["average"] = tensors_of(getattr(average, "module", average))
    elif average is not None:
        found["average"] = average
    return found


def assert_equal_to_twin(
    make: Callable[[], L.LightningModule], averager: Averager | None, folder: Path, **kwargs: Any
) -> None:
    """A pruned fit ends as its masked dense twin."""
    options: dict[str, Any] = {"precision": "64-true", **kwargs}
    recording = Recording()
    pruner = pruning(criterion=recording, schedule=OneShot(STEP))
    torch.manual_seed(0)
    mine = averager() if averager else None
    pruned = kept(fit(make(), pruner, folder, others=[mine] if mine else [], **options), mine)
    event = pruner.state_dict()["record"]["events"][0]
    assert event["step"] == STEP
    dense, first = recording.graphs[0], options.pop("first", False)
    torch.manual_seed(0)
    theirs, masked = averager() if averager else None, Masked(dense, event["removed"])
    both = [theirs] if theirs else []
    run = trainer([*both, masked] if first else [masked, *both], default_root_dir=folder, **options)
    run.fit(make(), loader())
    twin = kept(run, theirs)
    assert twin.keys() == pruned.keys()
    assert averager is None or "average" in twin
    keep = dense.keep(event["removed"])
    for kind, tensors in twin.items():
        for name, expected in tensors.items():
            full = name if name in dense.shapes else f"net.{name}"
            for (tensor, dim), index in keep.items():
                if tensor == full:
                    expected = expected.index_select(dim, index)
            torch.testing.assert_close(pruned[kind][name], expected, rtol=1e-9, atol=1e-10, msg=f"{kind} of {name}")


class Shadow(L.Callback):
    """A user's own moving average: names to tensors, or a copy of a part of the module."""

    def __init__(self, part: bool = False) -> None:
        self.part = part
        self.shadow: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        named = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.shadow = copy.deepcopy(pl_module.net).requires_grad_(False) if self.part else named

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        living = pl_module.net if self.part else pl_module
        for name, p in living.named_parameters():
            mine = self.shadow.get_parameter(name) if self.part else self.shadow[name]
            mine.lerp_(p.detach(), 0.1)


AVERAGERS: dict[str, Averager] = {
    "ema": lambda: EMAWeightAveraging(decay=0.9),
    "mean": lambda: WeightAveraging(),
    "swa": lambda: StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1),
    "shadow": lambda: Shadow(),
    "shadow of a part": lambda: Shadow(part=True),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", AVERAGERS)
def test_averages_equal_those_of_the_masked_dense_twin(name: str, first: bool, tmp_path: Path) -> None:
    assert_equal_to_twin(lambda: Boring(zoo.Residual()), AVERAGERS[name], tmp_path, first=first)


def test_two_callbacks_of_one_class_follow_both(tmp_path: Path) -> None:
    shadows = [Shadow(), Shadow(part=True)]
    module = Boring(zoo.Residual())
    lands(module, tmp_path, others=shadows, pruner=pruning(schedule=Gradual(3, 2, 12)))
    shapes = {name: p.shape for name, p in module.named_parameters()}
    assert {name: t.shape for name, t in shadows[0].shadow.items()} == shapes
    assert {f"net.{name}": t.shape for name, t in shadows[1].shadow.named_parameters()} == shapes


class Grouped(Boring):
    """Several parameter groups with their own settings; perhaps in several optimizers; perhaps with a schedule."""

    def __init__(self, schedule: str | None = None, *, several: bool = False) -> None:
        super().__init__(zoo.Residual())
        self.schedule, self.automatic_optimization = schedule, not several

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        if not self.automatic_optimization:
            optimizers = self.optimizers()
            assert isinstance(optimizers, list)
            self.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        free = [p for p in self.parameters() if p.ndim == 1]
        if not self.automatic_optimization:
            return [torch.optim.AdamW(decayed, 1e-3), torch.optim.SGD(free, 0.05, momentum=0.9, nesterov=True)]
        groups = [{"params": decayed, "lr": 2e-3}, {"params": free, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, 1e-3)
        schedules: dict[str | None, Callable[[], Any]] = {
            None: lambda: [],
            "step": lambda: [StepLR(optimizer, 1, 0.5)],
            "cycle": lambda: [{"scheduler": OneCycleLR(optimizer, 2e-3, total_steps=24), "interval": "step"}],
            "plateau": lambda: [
                {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=10.0), "monitor": "train_loss"}
            ],
        }
        return [optimizer], schedules[self.schedule]()


@pytest.mark.parametrize("schedule", [None, "step", "cycle", "plateau"])
def test_groups_and_schedules_equal_those_of_the_masked_dense_twin(schedule: str | None, tmp_path: Path) -> None:
    assert_equal_to_twin(lambda: Grouped(schedule), None, tmp_path, gradient_clip_val=0.01)


@pytest.mark.slow
def test_rates_are_those_of_an_unpruned_fit(tmp_path: Path) -> None:
    for schedule in ("step", "cycle", "plateau"):
        runs = [lands(Grouped(schedule), tmp_path), trainer([], default_root_dir=tmp_path)]
        runs[1].fit(Grouped(schedule), loader())
        rates = [[(g["lr"], g["weight_decay"], len(g["params"])) for g in r.optimizers[0].param_groups] for r in runs]
        assert rates[0] == rates[1]
        assert rates[0][0][0] != 2e-3


def test_several_optimizers_lose_their_own_channels_only(tmp_path: Path) -> None:
    # A bias before a batch norm has no gradient; only Adam or a weight decay moves it.
    still = ["net.one.0.bias", "net.one.3.bias", "net.two.0.bias"]
    run = lands(Grouped(several=True), tmp_path, pruner=pruning(schedule=Gradual(4, 2, 12)), still=still)
    for optimizer in run.optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            assert all(v.shape == p.shape for v in optimizer.state[p].values() if isinstance(v, Tensor) and v.ndim)


class Averaging(Boring):
    """Keeps a slow average of its parameters beside them, updated as the paper of mean teachers does."""

    def __init__(self, keep: Callable[[dict[str, Tensor]], Any], values: Callable[[Any], Any]) -> None:
        super().__init__(zoo.Residual())
        self.keep, self.values = keep, values

    def on_fit_start(self) -> None:
        self.slow = self.keep({name: p.detach().clone() for name, p in self.named_parameters()})

    def on_train_batch_end(self, *_: Any) -> None:
        for slow, p in zip(self.values(self.slow), self.parameters(), strict=True):
            slow.mul_(0).add_(p.detach())


@pytest.mark.parametrize(
    ("keep", "values"),
    [
        (lambda named: named, lambda kept: kept.values()),
        (lambda named: {"slow": named, "steps": 0}, lambda kept: kept["slow"].values()),
        (lambda named: list(named.values()), lambda kept: kept),
        (lambda named: [1, [*named.values()]], lambda kept: kept[1]),
    ],
    ids=["dict", "dict in a dict", "list", "list in a list"],
)
def test_tensors_that_the_module_keeps_beside_its_parameters_follow_them(
    keep: Callable[[dict[str, Tensor]], Any], values: Callable[[Any], Any], tmp_path: Path
) -> None:
    module = Averaging(keep, values)
    lands(module, tmp_path)
    pairs = zip(values(module.slow), module.parameters(), strict=True)
    assert all(torch.equal(slow, p) for slow, p in pairs)


class Shadowing(L.Callback):
    """Keeps the parameters without their names, from the beginning or from the first step on."""

    def __init__(self, kind: Callable[[Any], Any], late: bool = False) -> None:
        self.kind, self.late = kind, late

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.late:
            self.shadow = self.kind(p.detach().clone() for p in pl_module.parameters())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.late:
            self.shadow = self.kind(p.detach().clone() for p in pl_module.parameters())


def test_two_callbacks_may_share_what_they_keep(tmp_path: Path) -> None:
    one, other = Shadowing(list), Shadowing(list)
    other.on_fit_start = lambda *_: setattr(other, "shadow", one.shadow)  # type: ignore[method-assign]
    module = Boring(zoo.Residual())
    lands(module, tmp_path, others=[one, other])
    assert [t.shape for t in other.shadow] == [p.shape for p in module.parameters()]


def test_a_tuple_of_copies_is_an_error_before_training_that_names_it(tmp_path: Path) -> None:
    module = Boring(zoo.Residual())
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=r"Shadowing\.shadow is a tuple .* keep it as a list, a dict"):
        lands(module, tmp_path, others=[Shadowing(tuple)])
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_a_tuple_that_comes_later_is_named_in_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"Shadowing\.shadow is a tuple that looks like a copy of the parameters"):
        lands(Boring(zoo.Residual()), tmp_path, others=[Shadowing(tuple, late=True)])
