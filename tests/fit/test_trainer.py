"""The Trainer's own ways to shorten, probe or repeat a fit: what must prune does, what must not leaves no trace."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from torch.utils.data import DataLoader

from fit.boring import Boring, Validated, loader, trainer
from fit.harness import fit, hooks_on, lands, pruning
from lightning_taylor import Gradual, OneShot, TaylorPruning
from lightning_taylor.checkpoint.widths import STATE_KEY
from lightning_taylor.report.state import read_state

EVENTS = Gradual(every_n_steps=3, start_step=2, end_step=14)


@pytest.mark.parametrize(
    "options",
    [
        {"limit_train_batches": 5},
        {"limit_train_batches": 0.5},
        {"max_steps": 13, "max_epochs": -1},
        {"max_steps": 13, "max_epochs": 50},
        {"max_time": {"hours": 1}},
        {"overfit_batches": 2, "max_epochs": 8},
        {"min_epochs": 2, "max_epochs": 4},
        {"reload_dataloaders_every_n_epochs": 1},
        {"detect_anomaly": True},
        {"inference_mode": False},
    ],
    ids=lambda options: " ".join(options),
)
def test_the_default_schedule_fits_into_any_fit(options: Any, tmp_path: Path) -> None:
    lands(Boring(zoo.Residual()), tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 3},
        {"val_check_interval": 0.25},
        {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 2},
        {"num_sanity_val_steps": -1, "limit_val_batches": 2},
    ],
    ids=lambda options: " ".join(options),
)
def test_validation_in_the_middle_of_an_epoch_neither_scores_nor_disturbs(options: Any, tmp_path: Path) -> None:
    """A fit with validation, sanity check included, ends bit for bit as one without."""
    ends = []
    for data in ((loader(),), (loader(), loader(seed=1))):
        torch.manual_seed(0)
        module = (Validated if len(data) == 2 else Boring)(zoo.OptionA())
        lands(module, tmp_path, *data, **(options if len(data) == 2 else {}))
        ends.append(dict(module.state_dict()))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_fast_dev_run_says_that_it_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Validated(zoo.Residual())
    before = copy.deepcopy(dict(module.named_parameters()))
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(module, pruning(), tmp_path, loader(), loader(), fast_dev_run=True)
    assert any("fast_dev_run" in record.message and "TaylorPruning" in record.message for record in caplog.records)
    assert {name: p.shape for name, p in before.items()} == {name: p.shape for name, p in module.named_parameters()}
    assert hooks_on(module) == 0


class Tuned(Boring):
    """Has the attributes that the tuner turns, and its own data."""

    def __init__(self) -> None:
        super().__init__(zoo.Residual())
        self.lr, self.batch_size = 1e-3, 4

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(batch=self.batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("what", ["lr_find", "scale_batch_size"])
def test_the_tuner_leaves_the_pruner_out_and_it_works_afterwards(what: str, tmp_path: Path) -> None:
    module, pruner = Tuned(), pruning(schedule=EVENTS)
    run = trainer([pruner], default_root_dir=tmp_path)
    if what == "lr_find":
        Tuner(run).lr_find(module, num_training=20, update_attr=True)
    else:
        Tuner(run).scale_batch_size(module, steps_per_trial=2, max_trials=2)
    assert not pruner.reached
    assert pruner.graph is None
    assert hooks_on(module) == 0
    assert module.net.stem[0].weight.shape[0] == 8
    run.fit(module)
    assert pruner.reached
    assert hooks_on(module) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("tuner", [LearningRateFinder, BatchSizeFinder])
def test_a_tuner_inside_of_the_fit_leaves_the_pruner_out(tuner: Any, first: bool, tmp_path: Path) -> None:
    finder = tuner(num_training_steps=15) if tuner is LearningRateFinder else tuner(steps_per_trial=1, max_trials=2)
    pruner, module = pruning(schedule=EVENTS), Tuned()
    run = trainer([finder, pruner] if first else [pruner, finder], default_root_dir=tmp_path)
    run.fit(module)
    assert pruner.reached
    steps = [event["step"] for event in json.loads((tmp_path / "pruning.json").read_text())["events"]]
    assert steps in ([5, 8, 11], [5, 8, 11, 14])  # counted from where the tuner had put everything back
    assert hooks_on(module) == 0


@pytest.mark.slow
def test_a_second_fit_with_another_module_prunes_that_one(tmp_path: Path) -> None:
    pruner = pruning(schedule=EVENTS)
    modules = [Boring(zoo.Residual()), Boring(zoo.OptionA())]
    for module in modules:
        lands(module, tmp_path, pruner=pruner)
    assert pruner.graph is not None
    assert "net.a.weight" in pruner.graph.shapes
    # And by the same Trainer.
    third, run = Boring(zoo.Residual()), trainer([pruner], default_root_dir=tmp_path)
    for epochs, module in ((3, Boring(zoo.Concat())), (6, third)):
        run.fit_loop.max_epochs = epochs
        run.fit(module, loader())
        assert pruner.reached
    assert third.net.stem[0].weight.shape[0] < 8 or third.net.one[0].weight.shape[0] < 6


@pytest.mark.slow
def test_a_module_may_bring_the_pruner_along(tmp_path: Path) -> None:
    class Bringing(Boring):
        def configure_callbacks(self) -> list[Any]:
            self.pruner = pruning(schedule=EVENTS)
            return [self.pruner]

    module = Bringing(zoo.Residual())
    trainer([], default_root_dir=tmp_path).fit(module, loader())
    assert module.pruner.reached
    # One of the Trainer's is replaced by it.
    other, replaced = Bringing(zoo.Residual()), pruning(schedule=OneShot(3))
    fit(other, replaced, tmp_path)
    assert other.pruner.reached
    assert replaced.graph is None


class Own(TaylorPruning):
    """A user's own."""


def test_two_pruners_are_refused_before_training_wherever_they_come_from(tmp_path: Path) -> None:
    class Bringing(Boring):
        def configure_callbacks(self) -> list[Any]:
            return [TaylorPruning(0.4)]

    for second in (TaylorPruning, Own):
        with pytest.raises(RuntimeError, match=f"more than one stateful callback of type `{second.__name__}`"):
            trainer([TaylorPruning(0.5), second(0.4)], default_root_dir=tmp_path)
    module = Bringing(zoo.Residual())
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(MisconfigurationException, match=r"has 2 TaylorPruning callbacks.*keep one, with scope="):
        trainer([Own(0.5)], default_root_dir=tmp_path).fit(module, loader())
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_the_state_of_a_users_subclass_has_the_name_that_readers_of_a_checkpoint_know(tmp_path: Path) -> None:
    run = trainer([Own(0.5, EVENTS, measure_latency=False)], default_root_dir=tmp_path)
    run.fit(Boring(zoo.Residual()), loader())
    run.save_checkpoint(tmp_path / "own.ckpt")
    state = torch.load(tmp_path / "own.ckpt", weights_only=True)["callbacks"][STATE_KEY]
    assert read_state(state).summary("own.ckpt").met
