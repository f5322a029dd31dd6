"""``TaylorPruning``: which hook does what, and in which order. No formula and no slicing lives here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_taylor.checkpoint.widths import NO_STATE, STATE_KEY, was_pruned
from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.taylor_batch import TaylorBatch
from lightning_taylor.fit import logging as loggers
from lightning_taylor.fit.distributed import Ranks, check_return, check_strategy
from lightning_taylor.fit.logging import FitLog
from lightning_taylor.fit.news import News
from lightning_taylor.fit.options import (
    OF_THE_TRACE,
    Options,
    as_inputs,
    as_written,
    changed_settings,
    check_arguments,
    present_names,
    settings_of,
)
from lightning_taylor.fit.session import Session
from lightning_taylor.fit.shape_hooks import ShapeHooks
from lightning_taylor.fit.step_counter import StepCounter
from lightning_taylor.fit.trainer_state import (
    check_alone,
    check_copies,
    check_validation,
    example_call,
    fit_length,
    gradient_scale,
    remaining_scale,
    standing,
    trace_step,
)
from lightning_taylor.fit.training_step import GradientWatch, step_of
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.guard import Guard
from lightning_taylor.plan.schedule import Schedule
from lightning_taylor.plan.score_batches import Scored
from lightning_taylor.plan.target import Target
from lightning_taylor.report.event import PruningEvent
from lightning_taylor.scores.normalize import Normalization
from lightning_taylor.surgery.wrapped_optimizers import check_optimizers
from lightning_taylor.trace.options import AttentionHeads, ConvGroups, TraceOptions, as_patterns
from lightning_taylor.trace.recorder import CallListener, Recording
from lightning_taylor.utilities.calls import ForwardCall, batch_size
from lightning_taylor.utilities.plain import to_plain

__all__ = [
    "TaylorPruning",
]


class TaylorPruning(Callback):
    """Prunes a network's channels while it trains, by first-order Taylor scores.

    During the user's own training batches every removable channel is scored; at the events of the schedule the least
    important ones are physically removed and the optimizer state is carried along, until the target is reached.

    Most fits need ``target`` alone, and perhaps a ``schedule`` or a ``guard``. What may go is said by ``ignore``,
    ``scope``, ``max_removed``, ``min_channels`` and ``round_to``; what is told by ``verbose``, ``on_event``,
    ``baseline`` and ``measure_latency``. The others are advanced: their defaults were measured, or are a matter of the
    network (``allow_inexact_norms``, ``conv_groups``, ``attention_heads``) or of the Trainer.

    Args:
        target: what may remain: a fraction of the dense model's FLOPs in (0, 1], or a ``Target`` with any of
            ``flops``, ``params``, ``channels``, ``latency`` and ``memory``, each such a fraction; all have to hold.
        schedule: when channels are removed: ``Gradual``, ``Iterative`` or ``OneShot``. By default a cubic
            ``Gradual()`` over the fit's own length: the first tenth dense, events until two thirds, then fine-tuning.
        criterion: how channels are scored; ``TaylorBatch()`` by default, which kept more accuracy on most of the
            networks that were measured (notebooks/accuracy.md). ``Taylor()`` is the criterion of the paper of 2017.
        normalization: of the scores within each group, before the global ranking: "l2", "l1", "minmax" or "none". By
            default the criterion's own ("none" for both of Taylor's, "l2" for the baselines); with a ``cost_penalty``
            "l2".
        cost_penalty: what a channel's normalised score loses per unit of its price (see ``cost_power``), in units of
            the score; the paper uses 1e-3, with FLOPs.
        ignore: name patterns of layers whose output channels stay: "layer4" covers everything inside, "*.conv1"
            every layer of that name. Also of a copy of the network that has to stay as it is, such as a teacher.
        min_channels: fewest channels that a group may keep.
        round_to: groups keep a multiple of this many channels; of a head, its rows count. None for 8 on a GPU with
            tensor cores, on which other widths can be slower than no pruning, and on a CPU for a target of latency
            (less where the target or the schedule asks for less), 1 elsewhere.
        example_inputs: what the deployed model's ``forward`` takes, for FLOPs, memory and latency: a tensor, a tuple of
            arguments, a dict of keyword arguments, or a shape such as ``[1, 3, 224, 224]``, examples first, for random
            numbers. By default taken from ``example_input_array`` or the first training batch.
        measure_latency: whether the report at the end times the dense and the pruned network, in seconds per batch.
        guard: holds the pruning back while a validation metric is too far below the dense model's: a ``Guard`` with
            the metric's name ``monitor``, ``max_drop`` in the metric's units, ``action`` and ``mode``.
        allow_untested_strategy: go on with a strategy that is neither single-device nor DDP.
        oracle_sample: at each event, remove so many random channels one by one on a copy, and log how well the scores
            predicted what that does to the loss (Spearman's correlation); costs about half a step for each.
        allow_inexact_norms: also remove channels that a LayerNorm or GroupNorm averages over, as in ConvNeXt
            and Swin; its statistics then run over those that are left, which changes the outputs a little.
        cost_power: a channel's score is divided by its price to this power: 0 ranks by what a channel is worth, 1 by
            what it is worth per price, None by the criterion's own: 1 for ``TaylorBatch()``, 0.5 for ``Taylor()``, and
            twice that where the price is of memory or latency (notebooks/accuracy.md). The price is what the channel's
            removal saves of the resource that the target asks for, of several the one furthest from its limit: MFLOPs
            (1e6 per example), millions of parameters, MB or milliseconds; the last two on this device, by
            ``lightning_taylor.measure.savings``.
        conv_groups: what goes from a grouped convolution, as in ResNeXt and RegNet: "whole" for whole groups, "spread"
            for the same channels of every group, "auto" for whole groups where they are many; see ``trace_channels``.
        attention_heads: what goes from an attention: "whole" heads, or with "spread" the same coordinates of each.
        scope: a name pattern, or several, of the modules that may lose channels and that the target counts, such as
            "generator"; by default all that is trained or that ``forward`` runs. The rest keeps every weight.
        verbose: whether a line is said when the model was traced and at each event, as Lightning says its own.
        on_event: called after each event, on every rank, with a ``PruningEvent``: its ``step``, the ``fractions`` that
            left, and how many channels were ``removed`` by layer.
        baseline: metrics of the dense model where they are known, such as ``{"val_acc": 0.93}``, for the report and the
            guard. By default those of the last validation before the first event; one is run then if there was none.
        max_removed: the largest share of a group's dense channels that may go, in [0, 1]: 0.9 for all groups, or by
            name patterns of layers, as in ``{"layer4": 0.5, "*.conv1": 0.9}``; of several that match, the smallest.
        score_batches: how many optimizer steps before each event are scored, with all their accumulated batches; the
            others cost nothing. "all" for every step, ``plan.ScoreBatches(n)`` for n that are spread evenly over those
            since the last event. By default the last 32: notebooks/speed.md.
        flops_penalty: the former name of ``cost_penalty``.
        flops_power: the former name of ``cost_power``.

    Raises:
        ValueError: listing every value of a wrong type or outside its range.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[TaylorPruning(target=0.5)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        target: float | Target = 0.5,
        schedule: Schedule | None = None,
        criterion: Criterion | None = None,
        normalization: Normalization | None = None,
        cost_penalty: float = 0.0,
        ignore: Sequence[str] = (),
        min_channels: int = 1,
        round_to: int | None = None,
        example_inputs: Any = None,
        measure_latency: bool = True,
        guard: Guard | None = None,
        allow_untested_strategy: bool = False,
        oracle_sample: int = 0,
        allow_inexact_norms: bool = False,
        cost_power: float | None = None,
        conv_groups: ConvGroups = "auto",
        attention_heads: AttentionHeads = "whole",
        scope: str | Sequence[str] = (),
        verbose: bool = True,
        on_event: Callable[[PruningEvent], object] | None = None,
        baseline: Mapping[str, float] | None = None,
        max_removed: float | Mapping[str, float] | None = None,
        score_batches: Scored | None = None,
        flops_penalty: float | None = None,
        flops_power: float | None = None,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_arguments(arguments)
        super().__init__()
        self._written = as_written(arguments, TaylorPruning)
        cost_penalty, cost_power = present_names(arguments)
        numbers = (cost_penalty, min_channels, round_to, cost_power, max_removed, score_batches)
        self.options = Options.of(target, criterion or TaylorBatch(), normalization, *numbers)
        self.normalization, self.cost_power = normalization, cost_power
        self.schedule, self.ignore = schedule, tuple(ignore)
        self.example_inputs = as_inputs(example_inputs)
        self.measure_latency, self.allow_untested_strategy = measure_latency, allow_untested_strategy
        self.guard, self.oracle_sample = guard, oracle_sample
        self.allow_inexact_norms = allow_inexact_norms
        self.conv_groups: ConvGroups = conv_groups
        self.attention_heads: AttentionHeads = attention_heads
        self.scope = as_patterns(scope)
        self._session = Session(self.options, guard, baseline)
        self.verbose, self.on_event = verbose, on_event
        self.baseline = dict(baseline) if baseline else None
        self._ranks = Ranks(News(verbose))
        self._listener = CallListener()
        self._gradients = GradientWatch()
        self._batch: Any = None
        self._forward: ForwardCall | None = None
        self._shape_hooks = ShapeHooks()
        self._log = FitLog()
        self._steps = StepCounter()
        self._examples = 1
        self._grad_scale: float | Tensor = 1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._written})"

    @property
    def state_key(self) -> str:
        """The name of the callback's state in a checkpoint, which whoever reads it knows; also that of a subclass."""
        return STATE_KEY

    @property
    def graph(self) -> ChannelGraph | None:
        """The channel graph at the present widths; None before the first training batch."""
        return self._session.graph

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self._session.reached

    @property
    def remaining(self) -> dict[str, float]:
        """FLOPs, parameters and channels as fractions of the dense model; empty before the first training batch."""
        return self._session.fractions() if self._session.traced else {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit, validate, test or predict begins: make ready for a checkpoint of any size."""
        if not self._session.owns(pl_module):
            self._session = Session(self.options, self.guard, self.baseline)
        self._shape_hooks.begin(trainer, pl_module, self, lambda: self.graph)
        if stage != "fit":
            return
        check_alone(trainer, TaylorPruning)
        check_strategy(trainer.strategy, self.allow_untested_strategy)
        check_return(trainer.strategy, pl_module)
        self._session.begin_fit(trainer.strategy.root_device)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint is loaded, after the model: take over where it left off."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state:
            before = self._session.load(state, pl_module)
            changed = changed_settings(before.settings, self._settings(), traced=self._session.traced)
            if changed and trainer.state.fn == "fit":
                rank_zero_warn(changed)
        elif was_pruned(checkpoint):
            rank_zero_warn(NO_STATE)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Called when a checkpoint is saved: everything that a resumed fit needs, in plain types."""
        return to_plain(self._session.state(self._settings()))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit begins: add the settings to the hyperparameters that are logged."""
        self._log.fit_starts(trainer, pl_module, self._hyperparameters())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train begins: lay the schedule, and listen to what the first batch will show."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info("TaylorPruning does nothing in a fast_dev_run")
            return
        check_optimizers(trainer.optimizers)
        # Steps that Lightning does not see are announced by the optimizers themselves.
        self._steps = StepCounter(partial(self.on_before_optimizer_step, trainer, pl_module))
        self._steps.start(trainer)
        check_copies(trainer, pl_module, self)
        check_validation(trainer, self.guard)
        self._session.lay_schedule(self.schedule, fit_length(trainer))
        inputs = self.example_inputs if self.example_inputs is not None else pl_module.example_input_array
        self._forward = None if inputs is None else example_call(inputs, pl_module)
        if not self._session.traced and self._forward and self._session.progress.needs_first_batch:
            # Only this needs no batch, and says less: what the step does with what ``forward`` returns is not seen.
            self._begin(trainer, pl_module, Recording([self._forward], forward=self._forward))
            return
        self._session.go_on()
        # A resumed fit needs no trace; what the model is called with is still wanted for the report.
        self._listener.begin(pl_module)
        if not self._session.traced:
            self._gradients.begin(pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called when the train batch begins: look at its examples, and let the criterion see it."""
        self._examples = batch_size(batch)
        self._session.start_batch(self._examples)
        # A step that takes the loader's iterator fetches its batch by itself; what is given here is the one before.
        fetched = "dataloader_iter" not in signature(pl_module.training_step).parameters
        if fetched:
            self._listener.clear()
            self._batch = None if self._session.traced else batch
            self._session.scorer.on_batch(batch)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Called before ``loss.backward()``: note the gradient scale."""
        self._grad_scale = gradient_scale(trainer, pl_module)
        scorer = self._session.scorer
        if pl_module.automatic_optimization:
            # An optimizer with a closure, such as LBFGS, evaluates a batch several times; only the last one counts.
            scorer.drop_batch()
        scorer.on_loss(loss)
        scorer.before_backward()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after ``loss.backward()``: what was seen in it counts; trace on what the first batch showed."""
        if pl_module.automatic_optimization:
            self._end_recording(trainer, pl_module)
        self._session.scorer.after_backward()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Called before ``optimizer.step()``: gradients are synchronised, not yet clipped."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        scorer = self._session.scorer
        if not pl_module.automatic_optimization:
            # What was gathered is of one objective; what comes now is perhaps of its opponent, as in a GAN.
            scorer.end_batch(examples=self._examples, grad_scale=self._grad_scale)
        scorer.before_step(parameters, grad_scale=remaining_scale(trainer, optimizer))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called when the train batch ends: take the scores in; remove channels if it is time."""
        # In manual optimization the first backward pass may come before other parts have run; a step may skip a batch.
        if self._listener.heard or not pl_module.automatic_optimization:
            self._end_recording(trainer, pl_module)
        session = self._session
        self._log.batch_ends(trainer, pl_module, session)
        if stepped := self._steps.stepped():
            session.check_state(self._steps.optimizers)
        if session.end_batch(self._examples, self._grad_scale, stepped=stepped):
            optimizers, sample = self._steps.optimizers, self.oracle_sample
            event = self._ranks.event(trainer, pl_module, self, session, optimizers, batch=batch, oracle_sample=sample)
            if event and self.on_event:
                self.on_event(event)
        if stepped and not pl_module.automatic_optimization:
            session.follow_pace(self.schedule, standing(trainer))
        if session.active:
            loggers.log_step(pl_module, session.fractions())

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the validation loop ends: note its metrics beside the size of the network; ask the guard."""
        if trainer.sanity_checking or not self._session.active:
            return
        self._ranks.validated(trainer, pl_module, self, self._session, self._steps.optimizers)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train ends: leave nothing on the model."""
        self._close()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit ends: say what was asked and what was achieved."""
        if trainer.is_global_zero and self._session.traced:
            self._log.fit_ends(trainer, pl_module, self._session, measure_latency=self.measure_latency)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called when any exception or Ctrl-C stops the fit: leave nothing on the model; report what Ctrl-C stopped."""
        self._close()
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and trainer.state.fn == "fit":
            self._log.interrupted(trainer, pl_module, self._session)
        self._shape_hooks.stop()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit, validate, test or predict ends: leave nothing on the model."""
        self._close()
        self._shape_hooks.end(trainer)

    def _end_recording(self, trainer: Trainer, pl_module: LightningModule) -> None:
        recording = self._listener.end()
        if recording is None:
            return
        recording = replace(recording, forward=self._forward)
        if self._session.traced:
            self._ranks.go_on(trainer, pl_module, self._session, recording)
            return
        self._session.progress.skip_first_batch()
        trained = self._gradients.end(pl_module, self._steps.optimizers) or None
        step = None if self._batch is None else step_of(trainer, pl_module, self._batch, self._examples)
        self._batch = None
        self._begin(trainer, pl_module, recording, step=step, trained=trained, equal=self._gradients.equal)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, recording: Recording, **known: Any) -> None:
        trace = partial(trace_step, pl_module, ignore=self.ignore, **known)
        self._ranks.begin(trainer, pl_module, self._session, recording, trace, TraceOptions.of(self))

    def _close(self) -> None:
        self._listener.end()
        self._gradients.close()
        self._steps.close()
        self._session.close()

    def _settings(self) -> dict[str, str]:
        return settings_of(self.options, **{name: getattr(self, name) for name in ("schedule", "guard", *OF_THE_TRACE)})

    def _hyperparameters(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("schedule", "guard", "measure_latency", *OF_THE_TRACE)}
        options = self._session.options
        chosen = {"target": options.target.asked, "round_to": options.multiple}
        return {**{k: v for k, v in vars(options).items() if k not in ("own_round_to", "lowered_to")}, **own, **chosen}
