"""What goes wrong around a pruning: disks, interrupts, the user's own code; and that arguments are named together."""

from __future__ import annotations

import errno
import inspect
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
import zoo
from campaigns.killed_fit import disagreements, hooks
from campaigns.strikes import counting_lines, on_lines
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from fit.boring import Boring, loader, trainer
from lightning_taylor import Gradual, Taylor, TaylorBatch, TaylorPruning
from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.errors import OptimizerStateError
from lightning_taylor.fit.options import CHECKS, check_arguments
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.guard import Guard
from lightning_taylor.report.summary import PruningSummary

FULL = OSError(errno.ENOSPC, "No space left on device")


def pruning(**kwargs: Any) -> TaylorPruning:
    return TaylorPruning(**{"target": 0.5, "schedule": Gradual(3, 2, 14), "measure_latency": False, **kwargs})


def fit(
    module: L.LightningModule, pruner: TaylorPruning, folder: Path, *others: L.Callback, **kwargs: Any
) -> L.Trainer:
    run = trainer([pruner, *others], default_root_dir=folder, **kwargs)
    run.fit(module, loader())
    return run


def assert_whole(module: Boring, pruner: TaylorPruning, run: L.Trainer | None = None) -> None:
    assert hooks(module) == 0
    assert disagreements(module, pruner, run.optimizers if run else []) == []


def test_every_argument_is_checked_and_all_wrong_ones_are_listed() -> None:
    assert set(CHECKS) == set(inspect.signature(TaylorPruning).parameters)
    with pytest.raises(
        ValueError, match=r"(?s)3 arguments of TaylorPruning are wrong:\n- target.*\n- ignore.*\n- round_to"
    ):
        TaylorPruning(target=3, ignore="fc", round_to=0)
    check_arguments({})


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    module, pruner = Boring(zoo.Residual()), pruning()
    with (
        mock.patch.object(PruningSummary, "write_json", side_effect=FULL),
        pytest.warns(UserWarning, match=r"report could not be written to .*pruning.json: OSError.*No space left"),
    ):
        fit(module, pruner, tmp_path)
    assert pruner.reached
    assert_whole(module, pruner)


def test_a_latency_that_cannot_be_measured_is_a_warning(tmp_path: Path) -> None:
    module, pruner = Boring(zoo.Residual()), pruning(measure_latency=True)
    with (
        mock.patch("lightning_taylor.fit.report.compare_latency", side_effect=RuntimeError("busy")),
        pytest.warns(UserWarning, match="latency of the pruned network could not be measured: RuntimeError: busy"),
    ):
        fit(module, pruner, tmp_path)
    assert (tmp_path / "pruning.json").exists()


@pytest.mark.parametrize("save", [1, 3])
def test_a_full_disk_ends_the_fit_and_leaves_the_network_whole(save: int, tmp_path: Path) -> None:
    module, pruner = Boring(zoo.Residual()), pruning()
    real, calls = torch.save, 0

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == save:
            raise FULL
        real(*args, **kwargs)

    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    run = trainer([pruner, saver], default_root_dir=tmp_path, enable_checkpointing=True)
    with mock.patch("torch.save", full), pytest.raises(OSError, match="No space left"):
        run.fit(module, loader())
    assert_whole(module, pruner, run)


def test_a_training_step_that_raises_in_the_first_batch_leaves_no_recorder(tmp_path: Path) -> None:
    class Raises(Boring):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.net(batch[0])
            raise LookupError("mine")

    module, pruner = Raises(zoo.Residual()), pruning()
    with pytest.raises(LookupError, match="mine"):
        fit(module, pruner, tmp_path)
    assert_whole(module, pruner)


@pytest.mark.parametrize("event", [0, 1])
def test_a_criterion_that_raises_after_it_put_its_hooks_on_leaves_none(event: int, tmp_path: Path) -> None:
    class Raises(Criterion):
        def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
            scorer = Taylor().scorer(model, graph, event=event)
            if event == fails_at:
                raise LookupError("mine")
            return scorer

    fails_at = event
    module, pruner = Boring(zoo.Residual()), pruning(criterion=Raises())
    run = trainer([pruner], default_root_dir=tmp_path)
    with pytest.raises(LookupError, match="mine"):
        run.fit(module, loader())
    assert_whole(module, pruner, run)


HOOKS = "on_fit_start on_train_start on_before_backward on_after_backward on_train_batch_end on_train_end".split()


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("after", [False, True])
def test_an_exception_in_a_users_hook_leaves_the_network_whole(hook: str, after: bool, tmp_path: Path) -> None:
    class Raises(L.Callback):
        calls = 0

    def raising(self: Raises, *_: Any) -> None:
        self.calls += 1
        if self.calls == 9 or hook in ("on_fit_start", "on_train_start", "on_train_end"):
            raise LookupError("mine")

    setattr(Raises, hook, raising)
    module, pruner = Boring(zoo.Residual()), pruning()
    run = trainer([pruner, Raises()] if after else [Raises(), pruner], default_root_dir=tmp_path)
    with pytest.raises(LookupError, match="mine"):
        run.fit(module, loader())
    assert_whole(module, pruner, run)


PARTS = ("fit/session", "checkpoint", "surgery", "criteria")
OTHER_PARTS = (
    "fit/callback", "fit/pruner", "fit/distributed", "fit/training_step", "scores", "plan", "trace/recorder"
)  # fmt: skip


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def _own_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """Count the lines of each part of the package that a fit runs."""
    counted: Counter[str] = Counter()
    torch.manual_seed(0)  # how many they are depends on its scores
    with counting_lines(counted):
        fit(Boring(zoo.Residual()), pruning(criterion=TaylorBatch()), tmp_path_factory.mktemp("lines"))
    return counted


@pytest.mark.usefixtures("_own_handler")
@pytest.mark.parametrize("part", [*PARTS, *(pytest.param(part, marks=pytest.mark.slow) for part in OTHER_PARTS)])
def test_ctrl_c_anywhere_leaves_the_network_whole(part: str, lines: Counter[str], tmp_path: Path) -> None:
    """At a line in each half of what every part of the package runs; the kill campaign tries many more."""
    assert lines[part], "no line of it ran"
    for half in range(2):
        torch.manual_seed(0)
        module, pruner = Boring(zoo.Residual()), pruning(criterion=TaylorBatch())
        run = trainer([pruner], default_root_dir=tmp_path)
        line = 1 + lines[part] * (2 * half + 1) // 4
        # Lightning may leave the process deaf to every later Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with on_lines(part, line, interrupt), pytest.raises((SystemExit, KeyboardInterrupt)):
            run.fit(module, loader())
        assert_whole(module, pruner, run)


class Whitened(torch.optim.SGD):
    """Keeps a matrix that mixes the channels, under a name that nobody knows."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["gram"] = p.flatten(1) @ p.flatten(1).T if p.ndim > 1 else None
        return loss


def test_an_optimizer_that_cannot_follow_ends_the_fit_after_its_first_step(tmp_path: Path) -> None:
    module, pruner = Boring(zoo.Residual()), pruning()
    module.configure_optimizers = lambda: Whitened(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    run = trainer([pruner], default_root_dir=tmp_path)
    with pytest.raises(OptimizerStateError, match=r"Whitened keeps 'gram' .* parameter 'net\..* such as SGD or AdamW"):
        run.fit(module, loader())
    assert run.global_step == 1
    assert hooks(module) == 0


def test_a_guard_without_a_validation_is_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a validation, and this fit has none"):
        fit(Boring(zoo.Residual()), pruning(guard=Guard("val_acc", 0.1)), tmp_path)
