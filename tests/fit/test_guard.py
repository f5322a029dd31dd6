"""The guard, driven by a made-up validation value: what holds the pruning back, what lets it go on, what goes back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import zoo
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor

from fit.boring import Boring, loader, trainer
from fit.harness import Survivors, fit, hooks_on, pruning, report_in
from fit.resuming import StatefulLoader, differences
from lightning_taylor import Gradual, Guard, Iterative, Taylor, TaylorPruning

EVENTS = Gradual(every_n_steps=4, start_step=8, end_step=24)  # at 12, 16, 20 and 24 of 48 steps in epochs of eight
LATE = Gradual(every_n_steps=4, start_step=8, end_step=28, curve="linear")
EPOCHS = 6


class Told(Boring):
    """Says after each epoch how good it is: whatever it was told."""

    def __init__(self, values: Sequence[float], name: str = "val_acc", by_step: int = 0, **kwargs: Any) -> None:
        super().__init__(zoo.Residual(), **kwargs)
        self.values, self.name, self.by_step = values, name, by_step

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        when = self.global_step // self.by_step if self.by_step else self.current_epoch
        self.log(self.name, self.values[min(when, len(self.values) - 1)])


def guarded(action: Any, schedule: Any = EVENTS, **kwargs: Any) -> TaylorPruning:
    guard = Guard(**{"monitor": "val_acc", "max_drop": 0.1, "action": action, **kwargs})
    return pruning(schedule=schedule, guard=guard)


def run(
    module: Told,
    pruner: TaylorPruning,
    folder: Path,
    data: Any = None,
    others: Sequence[L.Callback] = (),
    resume: Path | None = None,
    **kwargs: Any,
) -> L.Trainer:
    options = {
        "max_epochs": EPOCHS,
        "default_root_dir": folder,
        "enable_checkpointing": bool(others or resume),
        **kwargs,
    }
    fitter = trainer([pruner, *others], **options)
    fitter.fit(module, data or loader(), loader(n=8), ckpt_path=resume, weights_only=True if resume else None)
    return fitter


def steps(folder: Path) -> list[int]:
    return [event["step"] for event in report_in(folder)["events"]]


def everything(module: L.LightningModule, trainer: L.Trainer, pruner: TaylorPruning) -> dict[str, Any]:
    """What a rollback has to bring back, by value."""
    attributes = {
        name: {k: v for k, v in vars(m).items() if isinstance(v, int | tuple) and k != "training"}
        for name, m in module.net.named_modules()
    }
    graph = pruner.state_dict()["graph"]
    averages = [vars(c).get("_average_model") for c in trainer.callbacks]  # type: ignore[attr-defined]
    return copy.deepcopy(
        {
            "tensors": dict(module.state_dict()),
            "optimizer": trainer.optimizers[0].state_dict()["state"],
            # Their count of averages is a clock, like the learning rate's schedule, and goes on.
            "averages": [dict(getattr(a, "module", a).state_dict()) for a in averages if a is not None],
            "attributes": attributes,
            "graph": graph,
        }
    )


class Notes(L.Callback):
    """Takes down everything at the end of each validation; before the pruner or after it."""

    def __init__(self, pruner: TaylorPruning) -> None:
        self.pruner = pruner
        self.notes: list[dict[str, Any]] = []
        self.flops: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.notes.append(everything(pl_module, trainer, self.pruner))
            self.flops.append(sum(p.numel() for p in pl_module.net.parameters()))


@pytest.mark.slow
def test_without_a_drop_nothing_is_held_back(tmp_path: Path) -> None:
    for action in ("stop", "pause", "rollback"):
        pruner = guarded(action)
        run(Told([0.9, 0.85, 0.8, 0.8]), pruner, tmp_path)
        assert pruner.reached
        assert steps(tmp_path)[:2] == [12, 16]


@pytest.mark.slow
def test_stop_removes_no_more(tmp_path: Path) -> None:
    pruner = guarded("stop")
    # Good when dense, too low after the events at 12 and 16, and good again too late.
    with (
        pytest.warns(UserWarning, match=r"at step 16: val_acc is 0.7, 0.9 when dense .*: nothing more is removed"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        run(Told([0.9, 0.7, 0.9, 0.9]), pruner, tmp_path)
    assert not pruner.reached
    assert steps(tmp_path) == [12, 16]


@pytest.mark.slow
def test_pause_waits_for_the_metric_and_then_catches_up(tmp_path: Path) -> None:
    pruner = guarded("pause")
    survivors = Survivors(pruner)
    # Too low at 16 and 24, recovered at 32.
    with (
        pytest.warns(
            UserWarning, match=r"at step 16: val_acc is 0.7, 0.9 when dense .*: events wait until it recovers"
        ),
        pytest.warns(UserWarning, match=r"at step 32: val_acc is 0.85, .*: pruning goes on"),
    ):
        fit(
            Told([0.9, 0.7, 0.75, 0.85]), pruner, tmp_path, loader(), loader(n=8), others=[survivors], max_epochs=EPOCHS
        )
    # Both events that were missed, at once; scored on what came since the one before.
    assert steps(tmp_path) == [12, 16, 33]
    assert pruner.reached
    assert survivors.steps > 1
    assert survivors.still == []


@pytest.mark.slow
def test_pause_lets_iterative_events_go_on_one_by_one(tmp_path: Path) -> None:
    one_by_one = Iterative(every_n_steps=3, channels_per_event=1, start_step=8)
    pruner = pruning(schedule=one_by_one, guard=Guard("val_acc", 0.1, "pause"), criterion=Taylor())
    with (
        pytest.warns(UserWarning, match="events wait"),
        pytest.warns(UserWarning, match="pruning goes on"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        run(Told([0.9, 0.7, 0.7, 0.9]), pruner, tmp_path)
    assert steps(tmp_path) == [11, 14, 33, 35, 38, 41, 44, 47]


@pytest.mark.slow
def test_a_metric_that_should_be_small_is_guarded_the_other_way(tmp_path: Path) -> None:
    pruner = guarded("stop", monitor="val_loss", mode="min", max_drop=0.5)
    with (
        pytest.warns(UserWarning, match="val_loss is 1.6, 1 when dense"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        run(Told([1.0, 1.6], name="val_loss"), pruner, tmp_path)
    assert steps(tmp_path) == [12, 16]
    nan = guarded("stop")
    with (
        pytest.warns(UserWarning, match="val_acc is nan"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        run(Told([0.9, float("nan")]), nan, tmp_path)
    assert steps(tmp_path) == [12, 16]


AVERAGERS: dict[str, Callable[[], list[L.Callback]]] = {
    "none": lambda: [],
    "ema": lambda: [EMAWeightAveraging(decay=0.9)],
    "swa": lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1)],
}


@pytest.mark.parametrize("average", AVERAGERS)
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_rollback_brings_back_the_last_good_size_bit_by_bit(optimizer: str, average: str, tmp_path: Path) -> None:
    pruner = guarded("rollback", LATE)
    module = Told([0.9, 0.85, 0.85, 0.6], optimizer=optimizer, **({"momentum": 0.9} if optimizer == "SGD" else {}))
    before, after = Notes(pruner), Notes(pruner)
    callbacks = [before, *AVERAGERS[average](), pruner, after]
    fitter = trainer(callbacks, default_root_dir=tmp_path, max_epochs=EPOCHS, num_sanity_val_steps=0)
    with (
        pytest.warns(UserWarning, match=r"at step 32: val_acc is 0.6, .* went back to the last good size"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        fitter.fit(module, loader(), loader(n=8))
    # The validations come at 8 (dense), 16, 24 (good) and 32 (not); those of the fourth epoch show the way back.
    assert before.flops[3] < before.flops[2] < before.flops[1] < before.flops[0]
    assert differences(after.notes[3], before.notes[2]) == []
    assert differences(before.notes[3], before.notes[2]) != []
    # And the fit goes on at that size, without another event.
    assert after.flops[3:] == [before.flops[2]] * len(after.flops[3:])
    assert differences(after.notes[4]["tensors"], after.notes[3]["tensors"]) != []
    assert not pruner.reached
    assert max(steps(tmp_path)) <= 24
    assert hooks_on(module) == 0
    assert module.net(torch.randn(2, 3, 12, 12)).shape == (2, 5)


@pytest.mark.slow
def test_rollback_to_the_dense_network(tmp_path: Path) -> None:
    pruner, module = guarded("rollback"), Told([0.9, 0.5])
    with (
        pytest.warns(UserWarning, match=r"went back to the last good size \(100.0% of the FLOPs\)"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        run(module, pruner, tmp_path)
    assert steps(tmp_path) == []
    assert module.net.stem[0].weight.shape == (8, 3, 3, 3)
    assert module.net.stem[0].out_channels == 8


def test_a_metric_that_does_not_exist_is_an_error_that_lists_those_that_do(tmp_path: Path) -> None:
    module = Told([0.9])
    with pytest.raises(ValueError, match=r"monitor='val_f1'.* there are .*val_acc"):
        run(module, guarded("stop", monitor="val_f1"), tmp_path)
    assert hooks_on(module) == 0


def test_a_guard_in_a_fit_without_validation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a validation"):
        fit(Boring(zoo.Residual()), guarded("stop"), tmp_path)


@pytest.mark.slow
def test_a_first_validation_that_would_come_after_the_first_event_comes_before_it(tmp_path: Path) -> None:
    pruner = guarded("stop", Gradual(2, 2, 12))
    with (
        pytest.warns(UserWarning, match=r"val_acc is 0.1, 0.9 when dense .*: nothing more is removed"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        run(Told([0.9, 0.1], by_step=5), pruner, tmp_path)
    assert steps(tmp_path) == [4, 6, 8]


@pytest.mark.slow
def test_a_baseline_of_the_users_takes_the_place_of_that_validation(tmp_path: Path) -> None:
    pruner = TaylorPruning(
        0.5,
        schedule=Gradual(2, 2, 20),
        measure_latency=False,
        guard=Guard("val_acc", 0.05, "stop"),
        baseline={"val_acc": 0.9},
    )
    held = r"0\.1, 0\.9 when dense \(max_drop=0\.05\): nothing more is removed"
    with pytest.warns(UserWarning, match="was not reached"), pytest.warns(UserWarning, match=held):
        run(Told([0.1, 0.1]), pruner, tmp_path)
    assert not pruner.reached
    report = report_in(tmp_path)
    assert report["metrics"]["val_acc"]["before"] == 0.9
    assert report["baseline"] == {"step": None, "given": ["val_acc"]}


@pytest.mark.slow
@pytest.mark.parametrize("action", ["stop", "pause", "rollback"])
def test_a_network_that_was_good_at_the_target_is_not_guarded_any_more(action: str, tmp_path: Path) -> None:
    pruner, module = guarded(action), Told([0.9, 0.9, 0.9, 0.1])
    run(module, pruner, tmp_path)
    assert pruner.reached


class Kill(Checkpoint):
    """Saves after some steps and ends the fit there."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(events wait|pruning goes on|went back|nothing more|not reached).*")
@pytest.mark.parametrize("action", ["pause", "rollback", "stop"])
@pytest.mark.parametrize("step", [20, 28])
def test_a_fit_resumed_in_the_middle_of_a_held_guard_ends_alike(action: str, step: int, tmp_path: Path) -> None:
    """Held at the validation after 16 (or, for a rollback, with the network of then in memory), killed, resumed."""
    values = [0.9, 0.85, 0.6, 0.6, 0.88] if action == "rollback" else [0.9, 0.7, 0.7, 0.88]
    ends: list[dict[str, Tensor]] = []
    events: list[list[int]] = []
    for resumed in (False, True):
        torch.manual_seed(0)
        path = None
        if resumed:
            path = tmp_path / "k.ckpt"
            with pytest.raises((SystemExit, KeyboardInterrupt)):
                run(Told(values), guarded(action, LATE), tmp_path, StatefulLoader(), others=[Kill(step, path)])
        module = Told(values)
        run(module, guarded(action, LATE), tmp_path, StatefulLoader(), resume=path)
        ends.append(dict(module.state_dict()))
        events.append(steps(tmp_path))
    assert events[0] == events[1]
    assert differences(*ends) == []
