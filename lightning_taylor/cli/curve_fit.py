"""One fit of ``compare --curves``: from a trained checkpoint to the target, measured on the way.

It is an ordinary fit of the configuration's model, data and optimizer that begins with the checkpoint's weights. Fits
of one seed see the same batches in the same order (unless a dropout on the CPU draws as many numbers as the pruned
network is wide, and a later epoch is shuffled by what comes after), and are validated after the same steps.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelSummary, ProgressBar, Timer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from lightning_taylor.cli.config import FitConfig
from lightning_taylor.cli.criteria import WITH_FLOPS, known_criteria
from lightning_taylor.cli.exit import debugging, fail, nearest
from lightning_taylor.cli.lightning_cli import TaylorCLI
from lightning_taylor.fit.callback import TaylorPruning
from lightning_taylor.fit.options import FORMER_NAMES
from lightning_taylor.fit.trainer_state import fit_length
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.schedule import Gradual, Schedule, default_schedule
from lightning_taylor.study.curve_table import measured_steps
from lightning_taylor.study.curves import DENSE, Curve, CurvePoint

__all__ = ["fit_curve"]

LEFT_OUT = (TaylorPruning, Checkpoint, EarlyStopping, Timer, ProgressBar, ModelSummary)
"""Of the configuration's callbacks: what ends a fit before its time, and what writes or prints."""


def fit_curve(
    asked: argparse.Namespace, config: FitConfig, name: str, seed: int, path: str, metric: str | None
) -> tuple[Curve, str]:
    """Fit once, from the checkpoint to the target.

    Args:
        asked: the command line of ``compare --curves``.
        config: of the fit.
        name: of the criterion; ``DENSE`` for none.
        seed: of the order of the data and of all that is random.
        path: of the checkpoint.
        metric: which of the validation's; None for the first with "acc" in its name.

    Returns:
        The curve, and the metric that it is of.

    Raises:
        SystemExit: if there is no such metric, the checkpoint is of another model, the fit's length is unknown, or
            Ctrl-C stopped it.
    """
    args = [*config.args, f"--seed_everything={seed}", "--trainer.logger=false"]
    args += ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
    if asked.steps:
        args += [f"--trainer.max_steps={asked.steps}", "--trainer.max_epochs=-1"]
    with _hushed():
        built = _Built(args)
        trainer: Any = built.trainer
        theirs = next((c for c in trainer.callbacks if isinstance(c, TaylorPruning)), None)
        others = [callback for callback in trainer.callbacks if not isinstance(callback, LEFT_OUT)]
        # Callbacks and steps may ask for a logger, and none of them is to notice that it keeps nothing.
        trainer.callbacks, trainer.loggers = others, [DummyLogger()]
        metrics = _validate(built, path, asked, config.name)
        metric = metric or next((known for known in metrics if "acc" in known.lower()), None)
        if metric not in metrics:
            said = f"logs no {metric!r}" if metric else "logs nothing with `acc` in its name"
            fail(2, f"--metric: the validation {said}{nearest(metric or '', list(metrics))}")
        seed_everything(seed, workers=True, verbose=False)
        pruner = None if name == DENSE else _pruner(asked, name, seed, theirs)
        measuring = _Measuring(metric, asked, theirs, pruner)
        measuring.note(0, metrics[metric])
        trainer.callbacks = [*others, *([pruner] if pruner else []), measuring]
        try:
            trainer.fit(built.model, datamodule=built.datamodule)
        except SystemExit:  # which Lightning makes of a Ctrl-C
            if trainer.interrupted:
                fail(1, "interrupted; the runs that are finished are kept, and the same command goes on from there")
            raise
    if missed := measuring.missed:
        fail(1, f"{name}, seed {seed}: the fit ended without a validation after the steps {missed}")
    return Curve(name, seed, tuple(measuring.points)), metric


def _validate(built: TaylorCLI, path: str, asked: argparse.Namespace, config: str) -> dict[str, float]:
    """The metrics of the checkpoint, whose weights are the model's from here on."""
    try:
        built.trainer.validate(
            built.model, datamodule=built.datamodule, ckpt_path=path, weights_only=not asked.trust, verbose=False
        )
    except RuntimeError as error:
        if debugging() or "loading state_dict" not in str(error):
            raise
        fail(2, f"{path} does not fit the model of {config}: {' '.join(str(error).split())[:300]}")
    return {name: float(value) for name, value in built.trainer.callback_metrics.items()}


def _pruner(asked: argparse.Namespace, name: str, seed: int, theirs: TaylorPruning | None) -> _QuietPruning:
    """The criterion under the configuration's own settings, if it has some."""
    theirs = theirs or TaylorPruning()
    options = theirs.options
    arguments = signature(TaylorPruning).parameters
    settings = {
        each: getattr(theirs if hasattr(theirs, each) else options, each)
        for each in arguments
        if each not in FORMER_NAMES
    }
    penalty = (options.cost_penalty or 1e-3) if asked.cost_penalty is None else asked.cost_penalty
    settings |= {
        "target": asked.target,
        "criterion": known_criteria(theirs, seed=seed)["Taylor" if name == WITH_FLOPS else name],
        "cost_penalty": penalty if name == WITH_FLOPS else 0.0,
        "measure_latency": False,
        "oracle_sample": 0,
        "guard": None,  # it would hold one criterion back longer than another
    }
    return _QuietPruning(**settings)


class _Built(TaylorCLI):
    """Builds the model, the data and the Trainer of a fit, and leaves it at that."""

    def fit(self, **kwargs: Any) -> None:
        """Nothing yet."""


class _QuietPruning(TaylorPruning):
    """Prunes, and writes no report: there is one table for all runs."""

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit ends: nothing to say."""


class _Measuring(Callback):
    """Has Lightning validate at the steps of a curve, and notes the metric beside what is left of the network.

    It comes after the pruner among the callbacks. The random numbers of the training do not notice it.
    """

    def __init__(
        self, metric: str, asked: argparse.Namespace, theirs: TaylorPruning | None, pruner: TaylorPruning | None
    ) -> None:
        self.points: list[CurvePoint] = []
        self._metric, self._asked, self._theirs, self._pruner = metric, asked, theirs, pruner
        self._due: list[int] = []
        self._step = self._global_step = 0
        self._validating = ExitStack()

    @property
    def missed(self) -> list[int]:
        """Steps that should have been measured, and were not."""
        return sorted(set(self._due) - {point.step for point in self.points})

    def note(self, step: int, value: float) -> None:
        """Add a point of the network as it is now."""
        left = (self._pruner.remaining if self._pruner else {}) or dict.fromkeys(("channels", "flops", "params"), 1.0)
        self.points.append(CurvePoint(step, left["channels"], left["flops"], left["params"], value))

    def _schedule(self, length: FitLength) -> Schedule:
        total = length.steps
        if total == float("inf"):
            fail(2, f"nobody knows how long a fit of {self._asked.model} is: give --steps")
        if every := self._asked.every:
            start, end = length.share(0.1), length.share(2 / 3)
            if every > end - start:
                fail(
                    2, f"--every {every}: of this fit's {int(total)} steps, {end - start} are there to remove channels"
                )
            return Gradual(every, start, end)
        own = self._theirs.schedule if self._theirs and not self._asked.steps else None
        return own.in_steps(length) if own else default_schedule(total)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit begins: its length is known, and with it when to remove and when to measure."""
        length = fit_length(trainer)
        schedule, total = self._schedule(length), int(length.steps)
        if self._pruner:
            self._pruner.schedule = schedule
        self._due = measured_steps(schedule.events(total), total, self._asked.points)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called when the train batch begins: remember the step it starts from."""
        self._validating.close()
        self._global_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called when the train batch ends: ask for a validation if one is due."""
        if trainer.global_step == self._global_step:
            return
        self._step += 1
        if self._step in self._due:
            self._validating.enter_context(_validation_now(trainer))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the validation loop ends: note its metric, unless it is one of the user's own."""
        due = self._step in self._due and not trainer.sanity_checking
        if due and self._metric in trainer.callback_metrics and self.points[-1].step < self._step:
            self.note(self._step, float(trainer.callback_metrics[self._metric]))
        self._validating.close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit ends: leave the Trainer as it was."""
        self._validating.close()


@contextmanager
def _validation_now(trainer: Trainer) -> Iterator[None]:
    """As long as it lasts, the Trainer validates after every batch, and its random numbers are put back."""
    usual = trainer.check_val_every_n_epoch, trainer.val_check_batch
    trainer.check_val_every_n_epoch, trainer.val_check_batch = None, 1
    with isolate_rng():
        yield
    trainer.check_val_every_n_epoch, trainer.val_check_batch = usual


@contextmanager
def _hushed() -> Iterator[None]:
    """Lightning's news and advice about each of many fits are not what was asked for."""
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
            yield
    finally:
        logging.disable(logging.NOTSET)
