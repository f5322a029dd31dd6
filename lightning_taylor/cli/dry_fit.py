"""A fit up to its first training batch: what a configuration builds, and what its training step calls."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_taylor.cli.config import FitConfig
from lightning_taylor.cli.exit import fail
from lightning_taylor.cli.lightning_cli import TaylorCLI
from lightning_taylor.fit.callback import TaylorPruning
from lightning_taylor.fit.trainer_state import example_call, fit_length, trace_step
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.trace.options import TraceOptions
from lightning_taylor.trace.recorder import CallRecorder
from lightning_taylor.utilities.calls import ForwardCall

__all__ = [
    "Looked",
    "SeenError",
    "Visitor",
    "look",
    "start_checkpoint",
    "visit",
]

ASIDE = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto",
         "--trainer.precision=32-true", "--trainer.num_sanity_val_steps=0")  # fmt: skip
"""A look needs neither ranks nor a GPU."""


@dataclass(frozen=True, eq=False)
class Looked:
    """What was there at the first batch.

    Attributes:
        pruner: the configuration's ``TaylorPruning``; one with the defaults if it has none.
        graph: the channels of what the training step called.
        length: optimizer steps of the fit and of an epoch on one device; infinite if nobody knows.
    """

    pruner: TaylorPruning
    graph: ChannelGraph
    length: FitLength


def look(
    args: list[str], ignore: Sequence[str] | None = None, chosen: Mapping[str, object] = MappingProxyType({})
) -> Looked:
    """Begin the fit that a command line asks for, and stop it at its first batch; nothing is written.

    Args:
        args: a command line of ``lightning-taylor fit``.
        ignore: patterns in place of the callback's own.
        chosen: settings of ``TraceOptions`` in place of the callback's own.

    Raises:
        SystemExit: for a mistake in the configuration, or a fit without a batch.
    """
    looking = _Looking(ignore, chosen)
    visit(args, looking)
    if looking.graph is None:
        fail(1, "the fit ended before its first training batch: is the training set empty?")
    return Looked(looking.pruner, looking.graph, looking.length)


class SeenError(Exception):
    """Everything is known; the fit need not go on."""


class Visitor(Callback):
    """The only callback of a fit that it ends, by ``SeenError``, before anything was trained."""

    def meet(self, callbacks: Sequence[Callback]) -> None:
        """See those of the configuration, which stay out of this fit."""


def visit(args: list[str], visitor: Visitor) -> None:
    """Begin the fit that a command line of ``lightning-taylor fit`` asks for, with a visitor; nothing else is written.

    Raises:
        SystemExit: for a mistake in the configuration.
    """
    with _hushed():
        _DryCLI([*args, *ASIDE], visitor)


class _Looking(Visitor):
    """Traces what the first batch is given to, and ends the fit."""

    def __init__(self, ignore: Sequence[str] | None, chosen: Mapping[str, object]) -> None:
        self.pruner = TaylorPruning()
        self.graph: ChannelGraph | None = None
        self.length = FitLength(float("inf"))
        self._ignore, self._chosen = ignore, chosen
        self._recorder: CallRecorder | None = None

    def meet(self, callbacks: Sequence[Callback]) -> None:
        """Take over the settings of the configuration's ``TaylorPruning``."""
        self.pruner = next((c for c in callbacks if isinstance(c, TaylorPruning)), self.pruner)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train begins: all is set up, and the length of the fit is known."""
        self.length = fit_length(trainer)
        inputs = self.pruner.example_inputs
        inputs = inputs if inputs is not None else pl_module.example_input_array
        if inputs is not None:
            self._trace(pl_module, [example_call(inputs, pl_module)])
        self._recorder = CallRecorder(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Called before ``loss.backward()``: what the first batch called is known."""
        if pl_module.automatic_optimization:
            self._trace(pl_module, self._heard())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called when the train batch ends: in manual optimization, only now."""
        self._trace(pl_module, self._heard())

    def _heard(self) -> list[ForwardCall]:
        assert self._recorder is not None
        self._recorder.close()
        return list(self._recorder.calls)

    def _trace(self, pl_module: LightningModule, calls: list[ForwardCall]) -> None:
        pruner = self.pruner
        ignore = pruner.ignore if self._ignore is None else self._ignore
        self.graph = trace_step(pl_module, calls, ignore=ignore, options=TraceOptions.of(pruner, **self._chosen))
        raise SeenError


class _DryCLI(TaylorCLI):
    """Builds all that a fit needs, and takes away what could write or print."""

    def __init__(self, args: list[str], visitor: Visitor) -> None:
        self._visitor = visitor
        super().__init__(args)

    def fit(self, **kwargs: Any) -> None:
        """Run the fit up to its first batch, with nothing in it but the visitor."""
        trainer: Any = self.trainer
        self._visitor.meet(trainer.callbacks)
        trainer.callbacks, trainer.loggers = [self._visitor], []
        try:
            trainer.fit(**{**kwargs, "ckpt_path": None})
        except SeenError:
            return


@contextmanager
def _hushed() -> Iterator[None]:
    """Lightning's news about seeds and devices are not what was asked for."""
    logs = [logging.getLogger(f"lightning.{part}") for part in ("fabric", "pytorch")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def start_checkpoint(config: FitConfig, path: Path) -> Path:
    """Build what a configuration describes, as its fit would, and save it before the first step.

    Its weights are those that the module loads, or random ones, the same every time: the seed is the configuration's,
    or 0.

    Args:
        config: of the fit.
        path: the file; its folder is made. A file of that name is replaced.

    Raises:
        SystemExit: for a mistake in the configuration.
    """
    seed = config.content.get("seed_everything")
    saving = _Saving(path)
    visit([*config.args, f"--seed_everything={0 if isinstance(seed, bool) else seed}"], saving)
    if not saving.saved:
        fail(1, f"{config.name}: the fit ended before its first step: is the training set empty?")
    return path


class _Saving(Visitor):
    """Saves the model when the fit begins, and ends the fit."""

    def __init__(self, path: Path) -> None:
        self.saved = False
        self._path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train begins: the model is built, and whatever it makes ready for a fit is ready."""
        trainer.save_checkpoint(self._path, weights_only=True)
        self.saved = True
        raise SeenError
