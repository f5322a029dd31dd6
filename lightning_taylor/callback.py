"""``TaylorPruning``: which hook does what, and in which order. No formula and no slicing lives here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import override

from lightning_taylor.errors import UncoupledChannelsError, UnsupportedModelError
from lightning_taylor.graph.capture import CallRecorder
from lightning_taylor.graph.channels import ChannelGraph
from lightning_taylor.graph.copying import batch_size
from lightning_taylor.graph.trace import ForwardCall, require_groups, trace_calls
from lightning_taylor.plan import Schedule, Target, default_schedule, fingerprint
from lightning_taylor.pruner import Options, Pruner
from lightning_taylor.report.fit import FitReport
from lightning_taylor.scores import Criterion, Normalization, Taylor

__all__ = ["TaylorPruning"]


class TaylorPruning(Callback):
    """Prunes a network's channels while it trains, by first-order Taylor scores.

    During the user's own training batches every removable channel is scored; at the events of the schedule the least
    important ones are physically removed and the optimizer state is carried along, until the target is reached.

    Args:
        target: what may remain: a fraction of the dense model's FLOPs in (0, 1], or a ``Target`` with several
            resources at once.
        schedule: when channels are removed: ``Gradual``, ``Iterative`` or ``OneShot``. By default a cubic
            ``Gradual`` over the fit's own length: the first tenth dense, events until two thirds, then fine-tuning.
        criterion: how channels are scored; ``Taylor()`` by default.
        normalization: of the scores within each group, before the global ranking: "l2", "l1", "minmax" or "none".
        flops_penalty: subtracted from the normalised score per MFLOPs that the channel's removal saves (the paper
            uses 1e-3).
        ignore: name patterns of layers whose output channels stay; "layer4" covers everything inside.
        min_channels: fewest channels that a group may keep.
        round_to: groups keep a multiple of this many channels.
        example_inputs: what the model's ``forward`` takes, for the trace: a tensor, a tuple of arguments or a dict
            of keyword arguments. By default taken from ``example_input_array`` or the first training batch.
        measure_latency: whether the report at the end times the dense and the pruned network.
        allow_untested_strategy: go on with a strategy that is neither single-device nor DDP.

    Raises:
        ValueError: for a value outside its range.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[TaylorPruning(target=0.5)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        target: float | Target = 0.5,
        schedule: Schedule | None = None,
        criterion: Criterion | None = None,
        normalization: Normalization = "l2",
        flops_penalty: float = 0.0,
        ignore: Sequence[str] = (),
        min_channels: int = 1,
        round_to: int = 1,
        example_inputs: Any = None,
        measure_latency: bool = True,
        allow_untested_strategy: bool = False,
    ) -> None:
        super().__init__()
        self.options = Options(
            target=Target.of(target),
            criterion=criterion or Taylor(),
            normalization=normalization,
            flops_penalty=flops_penalty,
            min_channels=min_channels,
            round_to=round_to,
        )
        if isinstance(ignore, str):
            raise ValueError(f"ignore takes a list of patterns, got the string {ignore!r}; write [{ignore!r}]")
        self.schedule = schedule
        self.ignore = tuple(ignore)
        self.example_inputs = example_inputs
        self.measure_latency = measure_latency
        self.allow_untested_strategy = allow_untested_strategy
        self._pruner: Pruner | None = None
        self._recorder: CallRecorder | None = None
        self._report = FitReport()
        self._active: Schedule | None = None
        self._step = 0
        self._traced_on_batch = False
        self._global_step = 0
        self._grad_scale = 1.0

    @property
    def graph(self) -> ChannelGraph | None:
        """The channel graph at the present widths; None before the first training batch."""
        return self._pruner.graph if self._pruner else None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit, validate, test or predict begins: check what can be checked."""
        if stage != "fit":
            return
        _check_strategy(trainer.strategy, self.allow_untested_strategy)
        self._step = 0
        self._traced_on_batch = False
        if self._pruner and self._pruner.model is not pl_module:
            self._pruner = None
            self._report = FitReport()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train begins: lay the schedule, and trace if the inputs are known."""
        if trainer.fast_dev_run:
            rank_zero_info("TaylorPruning does nothing in a fast_dev_run")
            return
        if self._pruner and self._pruner.done:
            return
        total = trainer.estimated_stepping_batches
        self._active = self.schedule or default_schedule(total)
        if total not in (-1, float("inf")):
            self._active.check(int(total))
        inputs = self.example_inputs if self.example_inputs is not None else pl_module.example_input_array
        if self._pruner:
            self._resume_scoring(pl_module)
        elif inputs is not None:
            self._begin(trainer, pl_module, [_as_call(inputs, pl_module)])
        else:
            _check_scored_before(self._active, total)
            self._recorder = CallRecorder(pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called when the train batch begins: remember the step it starts from."""
        self._global_step = trainer.global_step
        if self._recorder:
            self._recorder.calls.clear()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Called before ``loss.backward()``: trace on what the first batch showed; note the gradient scale."""
        if self._recorder:
            calls = list(self._recorder.calls)
            self._recorder.close()
            self._recorder = None
            self._traced_on_batch = True
            self._begin(trainer, pl_module, calls)
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        self._grad_scale = float(scaler.get_scale()) if scaler is not None else 1.0

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Called before ``optimizer.step()``: gradients are synchronised and unscaled, not yet clipped."""
        if self._pruner and self._active:
            self._pruner.before_step()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called when the train batch ends: take the scores in; remove channels if this step is an event."""
        if not self._pruner or not self._active:
            return
        self._pruner.end_batch(examples=batch_size(batch), grad_scale=self._grad_scale)
        if trainer.global_step > self._global_step:
            self._step += 1
            # The first batch showed the trace its inputs; nothing has been scored yet.
            scored = self._step > 1 or not self._traced_on_batch
            if scored and not self._pruner.done and self._active.is_event(self._step):
                self._event(trainer, pl_module)
        fractions = {f"pruning/{name}": value for name, value in self._pruner.fractions().items()}
        pl_module.log_dict(fractions, on_step=True, on_epoch=False, batch_size=1, rank_zero_only=True)
        pl_module.log("flops", fractions["pruning/flops"], prog_bar=True, logger=False, batch_size=1)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the validation loop ends: note its metrics beside the size of the network."""
        if self._pruner and not trainer.sanity_checking:
            self._report.note(trainer.callback_metrics, self._step, self._pruner)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train ends: leave nothing on the model."""
        self._detach()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit ends: say what was asked and what was achieved."""
        if not self._pruner or not trainer.is_global_zero:
            return
        if not self._pruner.done:
            reached = ", ".join(f"{name}={value:.3f}" for name, value in self._pruner.fractions().items())
            rank_zero_warn(f"the target {self.options.target.asked} was not reached: {reached} of the dense model left")
        folder = trainer.log_dir or trainer.default_root_dir
        self._report.show(self._pruner, folder, measure_latency=self.measure_latency)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called when any exception or Ctrl-C stops the fit: leave nothing on the model."""
        self._detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit, validate, test or predict ends: leave nothing on the model."""
        self._detach()

    def _begin(self, trainer: Trainer, pl_module: LightningModule, calls: list[ForwardCall]) -> None:
        """Trace on rank zero, share the graph, and start to score."""
        found: ChannelGraph | Exception | None = None
        if trainer.is_global_zero:
            try:
                found = require_groups(self._trace(pl_module, calls))
            except Exception as error:
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        self._pruner = Pruner(pl_module, cast(ChannelGraph, found), self.options)
        self._report.begin(calls)

    def _trace(self, pl_module: LightningModule, calls: list[ForwardCall]) -> ChannelGraph:
        if not calls:
            raise UnsupportedModelError(
                f"the training step of {type(pl_module).__name__} called no module with parameters before its first "
                "backward pass, so there is nothing to trace; pass example_inputs="
            )
        return trace_calls(pl_module, calls, ignore=self.ignore)

    def _resume_scoring(self, pl_module: LightningModule) -> None:
        assert self._pruner is not None
        shapes = {name: tuple(p.shape) for name, p in pl_module.named_parameters()}
        for name, shape in shapes.items():
            if self._pruner.graph.shapes.get(name, shape) != shape:
                raise UncoupledChannelsError(
                    f"{name!r} has shape {shape} and had {self._pruner.graph.shapes[name]} when the last fit ended; "
                    "use a new TaylorPruning for a model that was changed in between"
                )
        self._pruner.watch()

    def _event(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reduce the scores, let rank zero decide, remove on all ranks."""
        assert self._pruner is not None
        assert self._active is not None
        self._pruner.synchronize()
        remove = trainer.strategy.broadcast(self._pruner.decide(self._active, self._step))
        _check_same_on_all_ranks(trainer.strategy, remove)
        self._pruner.remove(remove, self._step, trainer.optimizers)
        if remove:
            _rewrap(trainer.strategy, pl_module)
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()  # eight sizes of one frame are too many for its cache

    def _detach(self) -> None:
        if self._recorder:
            self._recorder.close()
            self._recorder = None
        if self._pruner:
            self._pruner.close()
        self._active = None


def _as_call(inputs: Any, pl_module: LightningModule) -> ForwardCall:
    inputs = pl_module._apply_batch_transfer_handler(inputs)
    if isinstance(inputs, dict):
        return ForwardCall("", (), inputs)
    return ForwardCall("", inputs if isinstance(inputs, tuple) else (inputs,))


def _check_scored_before(schedule: Schedule, total_steps: float) -> None:
    """The first batch is spent on the trace, so an event after it would have no scores."""
    if schedule.is_event(1) and not any(schedule.is_event(step) for step in range(2, int(min(total_steps, 10**6)) + 1)):
        raise ValueError(
            f"{schedule} has its only event after the first step, when no batch has been scored; set "
            "example_inputs= (or example_input_array on the module), or move the event to step 2 or later"
        )


def _check_strategy(strategy: Strategy, allow_untested: bool) -> None:
    supported = isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
    if (not supported or "XLA" in type(strategy).__name__) and not allow_untested:
        raise MisconfigurationException(
            f"TaylorPruning does not work with {type(strategy).__name__}: it cannot cut parameters that are sharded or "
            "held by another runtime. Use a single device or strategy='ddp', or pass allow_untested_strategy=True"
        )


def _check_same_on_all_ranks(strategy: Strategy, remove: dict[str, Tensor]) -> None:
    """Equal counts with unequal indices would pass DDP's own checks and let the ranks drift apart."""
    mine = torch.tensor([fingerprint(remove)], device=strategy.root_device)
    everyone = cast(Tensor, strategy.all_gather(mine))
    if bool((everyone != mine).any()):
        raise UncoupledChannelsError("the ranks were told to remove different channels; nothing was removed")


def _rewrap(strategy: Strategy, pl_module: LightningModule) -> None:
    """DDP keeps buckets and accumulators of the old shapes: wrap the module anew."""
    if isinstance(strategy, DDPStrategy):
        strategy.model = pl_module
        strategy._pl_static_graph_delay_done = False
        strategy.configure_ddp()
