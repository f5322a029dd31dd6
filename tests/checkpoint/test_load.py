"""A pruned checkpoint goes wherever an ordinary one goes; one that does not fit says what differs."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import zoo
from fit.boring import Boring, loader, trainer
from fit.nets import Late, LateMixed, Mixed, Net, fitted, holds, layers, pruning, weights_of
from fit.resuming import KillAfter, KilledError
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from lightning_taylor import Taylor, TaylorPruning, UncoupledChannelsError
from lightning_taylor.checkpoint.load import load_pruned

X = torch.randn(2, 3, 12, 12)
SAVES = {
    "whole": {},
    "weights only": {"save_weights_only": True},
}


def saving(folder: Path, **kwargs: Any) -> ModelCheckpoint:
    return ModelCheckpoint(**{"dirpath": folder, "monitor": "score", "mode": "max", **kwargs})


Fits = Callable[[type[Net], str, bool], tuple[L.Trainer, Any, Path]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Fits:
    """Give a fit that keeps its best epoch, its module, and a checkpoint of its end; each is made once."""

    @cache
    def fit(make: type[Net], only: str, rising: bool) -> tuple[L.Trainer, Any, Path]:
        folder = tmp_path_factory.mktemp("saved")
        torch.manual_seed(0)
        module = make(rising=rising)
        run = fitted(module, folder, saving(folder, **SAVES[only]))
        run.save_checkpoint(folder / "end.ckpt")
        return run, module, folder / "end.ckpt"

    return fit


@pytest.mark.parametrize("make", [Net, Late])
@pytest.mark.parametrize("only", SAVES)
@pytest.mark.parametrize("task", ["validate", "test", "predict"])
def test_the_best_checkpoint_may_be_larger_than_the_model_in_memory(
    task: str, only: str, make: type[Net], saved: Fits
) -> None:
    run, module, end = saved(make, only, False)
    run.validate(module, loader(seed=1), ckpt_path=end)  # an earlier task may have made it large
    path = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    assert weights_of(path)["net.0.weight"].shape[0] == 8 > module.net[0].out_channels  # type: ignore[operator]
    getattr(run, task)(module, loader(seed=1), ckpt_path="best")
    assert holds(module, weights_of(path))


@pytest.mark.parametrize("make", [Net, Late])
@pytest.mark.parametrize("only", SAVES)
@pytest.mark.parametrize("task", ["validate", "test", "predict"])
def test_the_best_checkpoint_may_be_smaller_than_the_model_in_memory(
    task: str, only: str, make: type[Net], saved: Fits
) -> None:
    run, _, end = saved(make, only, True)
    path = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    assert weights_of(path)["net.0.weight"].shape[0] < 8
    fresh = trainer([pruning(), saving(end.parent)], default_root_dir=end.parent, enable_checkpointing=True)
    for again in (run, fresh):
        module = make()
        where = "best" if again is run else path
        getattr(again, task)(module, loader(seed=1), ckpt_path=where)
        assert holds(module, weights_of(path))


@pytest.mark.slow
@pytest.mark.parametrize("only", SAVES)
@pytest.mark.parametrize("ema", [False, True])
def test_a_class_loads_from_its_pruned_checkpoint(ema: bool, only: str, tmp_path: Path) -> None:
    for make in (Net, Mixed) if ema else (Net, Late, Mixed, LateMixed):  # Lightning warns of the two together
        folder = tmp_path / make.__name__
        average = [EMAWeightAveraging(decay=0.9)] if ema else []
        run = fitted(make(classes=4), folder, *average, saving(folder, **SAVES[only]))
        path = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        ways = [lambda c=make, p=path: load_pruned(c, p)]
        if issubclass(make, Mixed | LateMixed):
            ways.append(lambda c=make, p=path: c.load_from_checkpoint(p))
        for load in ways:
            module = load()
            assert type(module) is make
            assert module.hparams["classes"] == 4
            assert holds(module, weights_of(path))
            assert module(X).shape == (2, 4)


def test_the_arguments_of_the_class_are_taken_and_an_unpruned_checkpoint_too(tmp_path: Path) -> None:
    run = trainer([], enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=1)
    run.fit(Net(rising=False), loader(), loader(seed=1))
    run.save_checkpoint(tmp_path / "dense.ckpt")
    module = load_pruned(Net, tmp_path / "dense.ckpt", rising=True, map_location="cpu")
    assert module.rising
    assert holds(module, weights_of(tmp_path / "dense.ckpt"))


def test_a_checkpoint_that_does_not_remember_an_argument_asks_for_it(tmp_path: Path) -> None:
    run = trainer([pruning()], default_root_dir=tmp_path)
    run.fit(Boring(zoo.Residual()), loader())
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    with pytest.raises(TypeError, match=r"last.ckpt does not say .* load_pruned\(Boring, path, net=\.\.\.\), or call"):
        load_pruned(Boring, path)
    loaded = load_pruned(Boring, path, net=zoo.Residual()).state_dict()
    assert all(tensor.equal(loaded[name]) for name, tensor in weights_of(path).items())


def test_a_mixed_module_takes_a_state_dict_of_other_widths_by_itself(tmp_path: Path) -> None:
    run = fitted(Mixed(), tmp_path, saving(tmp_path))
    weights = weights_of(run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    module = Mixed()
    module.load_state_dict(weights)
    assert holds(module, weights)


@pytest.mark.slow
def test_every_checkpoint_loads_with_weights_only_and_strictly_into_plain_layers(tmp_path: Path) -> None:
    every = saving(tmp_path, every_n_train_steps=1, monitor=None, save_top_k=-1, save_last=True)
    fitted(Net(), tmp_path, every, EMAWeightAveraging(decay=0.9))
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 25
    sizes = set()
    for path in paths:
        weights = {name.removeprefix("net."): t for name, t in weights_of(path).items()}
        first, second = weights["0.weight"].shape[0], weights["3.weight"].shape[0]
        plain = layers(8, 5)
        plain[0], plain[1] = torch.nn.Conv2d(3, first, 3, padding=1), torch.nn.BatchNorm2d(first)
        plain[3], plain[7] = torch.nn.Conv2d(first, second, 3, padding=1), torch.nn.Linear(second, 5)
        assert not any(plain.load_state_dict(weights, strict=True))
        sizes.add((first, second))
    assert len(sizes) > 2


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    with pytest.raises(KilledError):
        fitted(Net(), folder, KillAfter(14, folder / "kill.ckpt"))
    return folder / "kill.ckpt"


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (
            Net(width=16),
            UncoupledChannelsError,
            r"net.0.weight has shape \(16, 3, 3, 3\) here and .* \(\(8, 3, 3, 3\) be",
        ),
        (Net(classes=7), UncoupledChannelsError, r"another Net: .*net.7.weight has shape \(7, 10\) here and \(5, "),
        (Boring(zoo.Residual()), RuntimeError, r"net.stem.0.weight"),
    ],
    ids=["widths", "classes", "architecture"],
)
def test_a_checkpoint_of_another_model_says_what_differs(
    module: L.LightningModule, error: type[Exception], message: str, pruned: Path, tmp_path: Path
) -> None:
    before = {name: t.clone() for name, t in module.state_dict().items()}
    data = (loader(), loader(seed=1))[: 1 + isinstance(module, Net)]
    run = trainer([pruning()], default_root_dir=tmp_path)
    with pytest.raises(error, match=message):
        run.fit(module, *data, ckpt_path=pruned, weights_only=True)
    assert {name: t.shape for name, t in module.state_dict().items()} == {n: t.shape for n, t in before.items()}
    if isinstance(module, Net):
        assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": 0.4}, r"target=.*flops=0.4.*, which was .*flops=0.5"),
        ({"criterion": Taylor()}, r"criterion=Taylor\(.*\), which was TaylorBatch\("),
        (
            {"normalization": "l1", "min_channels": 2},
            r"normalization='l1', which was 'none'; min_channels=2, which was 1",
        ),
        ({"ignore": ["net.0"]}, r"ignore=\('net.0',\), which was \(\). The new ones hold, but for ignore: "),
    ],
)
def test_a_fit_resumed_with_other_settings_says_which(
    changed: dict[str, Any], message: str, pruned: Path, tmp_path: Path
) -> None:
    run = trainer([pruning(**changed)], default_root_dir=tmp_path, max_epochs=3)
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    with pytest.warns(UserWarning, match=message):
        run.fit(Net(), loader(), loader(seed=1), ckpt_path=pruned, weights_only=True)


class Copies(L.Callback):
    """Copies the module in the middle of every batch."""

    def __init__(self, pruner: TaylorPruning) -> None:
        self.pruner, self.pickled, self.copied = pruner, [], []  # type: ignore[var-annotated]

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Any) -> None:
        self.pickled.append(pickle.dumps(pl_module.net))
        self.copied.append(copy.deepcopy(pl_module.net))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.on_before_backward(trainer, pl_module, None)


def test_a_copy_made_in_the_middle_of_a_fit_carries_no_callback(tmp_path: Path) -> None:
    pruner = pruning()
    copies = Copies(pruner)
    fitted(Net(), tmp_path, pruner, copies)
    assert len(copies.pickled) == len(copies.copied) == 48
    for data in copies.pickled:
        assert not any(word in data for word in (b"TaylorPruning", b"Session", b"Pruner", b"ChannelGraph", b"Recorder"))
    scores = pruner.state_dict()["scores"]
    for net in (copies.copied[0], copies.copied[20], pickle.loads(copies.pickled[1]), pickle.loads(copies.pickled[30])):
        net(X).sum().backward()
        layers(8, 5).load_state_dict(net.state_dict(), strict=False) if net[0].out_channels == 8 else None
        assert all(p.grad is not None for p in net.parameters())
    assert all(torch.equal(scores[name], t) for name, t in pruner.state_dict()["scores"].items())


def test_a_fit_that_began_without_pruning_is_resumed_with_it(tmp_path: Path) -> None:
    first = trainer([], default_root_dir=tmp_path, max_epochs=2)
    first.fit(Net(), loader(), loader(seed=1))
    first.save_checkpoint(tmp_path / "dense.ckpt")
    pruner = pruning(schedule=None)
    second = trainer([pruner], default_root_dir=tmp_path, max_epochs=5)
    second.fit(Net(), loader(), loader(seed=1), ckpt_path=tmp_path / "dense.ckpt", weights_only=True)
    state = pruner.state_dict()
    assert pruner.reached
    assert (state["step"], state["length"]) == (24, 24)
    steps = [event["step"] for event in state["record"]["events"]]
    assert 2 < min(steps) < max(steps) <= 16  # a tenth of what remained dense, events until two thirds


def test_an_ordinary_checkpoint_by_metric_keeps_the_unpruned_epoch(tmp_path: Path) -> None:
    run = fitted(Net(rising=False), tmp_path, saving(tmp_path, mode="max"))
    assert weights_of(run.checkpoint_callback.best_model_path)["net.0.weight"].shape[0] == 8  # type: ignore[union-attr]
