"""The loop of the paper without a Trainer: score, decide, remove, and remember.

``Pruner`` holds what lives between two events: the graph at its present widths, the scorer, and the record. The
callback only tells it when a batch ended, when gradients are ready, and which optimizers there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.criteria.base import IdleScorer, Scorer
from lightning_taylor.errors import TargetUnreachableError, UncoupledChannelsError
from lightning_taylor.fit.options import Options
from lightning_taylor.fit.still_copies import sums_of_copies, warn_of_still
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role, Slice
from lightning_taylor.measure.memory_curve import MemoryCurve
from lightning_taylor.measure.meter import Meter
from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.feasibility import check_reachable
from lightning_taylor.plan.measured_search import Selection, select_measured
from lightning_taylor.plan.price import channel_prices
from lightning_taylor.plan.record import Event, Record
from lightning_taylor.plan.schedule import Schedule
from lightning_taylor.scores.normalize import normalize
from lightning_taylor.surgery.mirrors import Copy
from lightning_taylor.surgery.optimizer_state import check_state
from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.surgery.wrapped_optimizers import unwrapped
from lightning_taylor.trace.freeing import in_words
from lightning_taylor.utilities.atomic import signals_deferred
from lightning_taylor.utilities.calls import ForwardCall
from lightning_taylor.utilities.hooks import hooks_undone

__all__ = [
    "Pruner",
]

_NO_GRADIENT = "no gradient has reached all that reads its channels; is a part of the model frozen?"


class Pruner:
    """Scores a model's channels and removes them, event by event, down to a target.

    Args:
        model: pruned in place.
        graph: its channel graph at the present widths.
        options: what to reach and how to choose.
        record: the events so far, if the model was pruned before.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, options: Options, record: Record | None = None) -> None:
        self.model = model
        self.options = options
        self.blind: Mapping[str, str] = {}
        """Groups that the criterion cannot score, with the reason."""
        self.differentiable: Mapping[str, bool] = {}
        """Name of a module -> whether its input needs a gradient, of those that were called in the traced step."""
        self.optimized: frozenset[str] | None = None
        """Names of the parameters that an optimizer holds, frozen or not; None if nobody knows."""
        self.unscored: Mapping[str, str] = {}
        """Groups that had no score at the last event, with the reason."""
        self.scores: Mapping[str, Tensor] = {}
        """What the last event was decided by: group -> shape ``(C,)``, normalised; only where it was decided."""
        self.scorer: Scorer = IdleScorer()
        """What gathers the scores at the present widths."""
        self._meter: Meter | None = None
        self._copies: dict[str, float] = {}
        self.reset(graph, record or Record())

    def reset(self, graph: ChannelGraph, record: Record, cost: CostModel | None = None) -> None:
        """Go on from another graph of the model, which has its widths already; what was gathered is forgotten."""
        self.close()
        self.scorer = IdleScorer()
        self.graph, self.record = graph, record
        self._cost = cost or CostModel(graph)

    def start(self) -> None:
        """Check the model against the graph and the target, and begin to score; a no-op once the target is met.

        Raises:
            UncoupledChannelsError: if the model has not the shapes that the graph says.
            TargetUnreachableError: if the target lies below what the groups that can be scored allow.
        """
        self._check_shapes()
        self._copies = {} if self.record.events else sums_of_copies(self.model, self.graph)
        if self.done:
            return
        self.watch()
        try:
            self._check_reachable()
        except BaseException:
            self.close()
            raise

    @property
    def cost(self) -> Cost:
        """What the model costs now."""
        return self._cost.now

    @property
    def dense(self) -> Cost:
        """What the model cost before the first event."""
        return self._cost.dense

    @property
    def measured(self) -> dict[str, float]:
        """Latency and memory as fractions of the dense model's, as the last event measured them; those asked for."""
        if self.record.events:
            return dict(self.record.events[-1].measured)
        return dict.fromkeys(self.options.target.to_measure, 1.0)

    @property
    def done(self) -> bool:
        """Whether the target is met."""
        return self.options.target.met(self.cost, self.dense, self.measured)

    def watch(self) -> None:
        """Start to gather scores at the present widths; the scores so far are dropped."""
        self.close()
        with signals_deferred(), hooks_undone(self.model):  # some would be left that nobody knows
            self.scorer = self.options.criterion.scorer(self.model, self.graph, event=len(self.record.events))
        self.blind = {**self._without_gradient(), **self.scorer.unscorable}

    def _without_gradient(self) -> dict[str, str]:
        """Return the groups that a criterion of gradients can never score, since none reaches what reads them."""
        scorer, trained = self.scorer, {name: p.requires_grad for name, p in self.model.named_parameters()}

        def can_score(s: Slice) -> bool:
            # Of what reads without a call of its own, as inside of an attention, nobody knows.
            if self.differentiable.get(s.tensor.rpartition(".")[0], True):
                return True
            # A weight alone tells nothing: while one optimizer steps, those of the others may be frozen.
            frozen = not trained.get(s.tensor, True)
            return not (scorer.needs_input_gradient or (scorer.needs_weight_gradient and frozen))

        def is_missing(s: Slice) -> bool:
            # Its share of the sum: nothing will ever step it, and without it the group has no score.
            frozen = not trained.get(s.tensor, True) and self.optimized is not None and s.tensor not in self.optimized
            return scorer.needs_weight_gradient and frozen

        consumers = {name: group.of(Role.CONSUMER) for name, group in self.graph.groups.items()}
        return {
            name: _NO_GRADIENT
            for name, slices in consumers.items()
            if slices and (not any(map(can_score, slices)) or any(map(is_missing, slices)))
        }

    def check_state(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Check that the optimizers' state of what may lose channels, as far as there is any, can follow.

        Raises:
            OptimizerStateError: naming the state and the way out.
        """
        sliced = {s.tensor for group in self.graph.groups.values() for s in group.slices}
        names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters() if name in sliced}
        for optimizer in unwrapped(optimizers):
            check_state(optimizer, names)

    def decide(self, schedule: Schedule, step: int) -> Selection | str:
        """What goes at this event, and what was measured for it; or why the event has to wait, in words.

        Raises:
            TargetUnreachableError: if all groups have scores, and even their minimum is too much.
        """
        scores = self.scorer.scores()
        unscored = [name for name in self.graph.groups if name not in scores]
        self.unscored = {name: self.blind.get(name, _NO_GRADIENT) for name in unscored}
        if not scores:
            return "no channel has a score: no finite gradient reached a consumer of any group since the last event"
        options, limits = self.options, self.options.limits(self.graph)
        self.scores = normalize(scores, options.normalization)
        demand = schedule.demand(step, options.target)
        few = options.round_to is None and demand.channels is not None and demand.channels < options.multiple
        try:
            return select_measured(
                self.scores,
                self.graph,
                demand,
                self._meter,
                now=self.measured,
                cost=self._cost,
                curve=self._memory_curve() if demand.channels is None else None,
                limits=replace(limits, round_to=1) if few else limits,
                **self._weights(),
            )
        except TargetUnreachableError as error:
            if not unscored:
                raise
            return f"{error}. No gradient has reached the consumers of {', '.join(unscored[:8])}: are they frozen?"

    def _memory_curve(self) -> MemoryCurve | None:
        return self._meter.memory_curve(self.graph) if self._meter and self.options.target.memory else None

    def _weights(self) -> dict[str, Any]:
        """Return how the ranking weighs scores by what a channel costs, where it does."""
        options = self.options
        if not options.cost_penalty and not options.power("flops"):
            return {}
        prices = channel_prices(options.target, self.graph, self._cost, self._meter, self.measured)
        power = options.power(prices.resource)
        return {"cost_penalty": options.cost_penalty, "cost_power": power, "prices": prices.by_group}

    def remove(
        self,
        selection: Selection,
        step: int,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        copies: Iterable[Copy] = (),
    ) -> Event:
        """Cut the channels out of the model and all that mirrors it, and start to score what is left.

        Signals wait until the record and the graph say what the model is: a checkpoint that is saved in a signal's
        handler holds all of the event or nothing of it.
        """
        began, remove = time.perf_counter(), selection.remove
        if remove and self._copies:
            warn_of_still(self._copies, sums_of_copies(self.model, self.graph))
            self._copies = {}
        before = self.scorer
        with signals_deferred():
            if remove:
                after = self._cost.after({name: len(index_R) for name, index_R in remove.items()})
                smaller = prune_channels(self.model, self.graph, remove, optimizers=optimizers, copies=copies)
                self.reset(smaller, self.record, after)
            cost = self.cost
            event = Event(
                step=step,
                removed={name: index_R.tolist() for name, index_R in remove.items()},
                flops=cost.flops,
                params=cost.params,
                channels=cost.channels,
                seconds=time.perf_counter() - began,
                measured=selection.measured,
            )
            self.record.append(event)
        if not self.done:
            self.watch()
            self.scorer.carry_over(before, remove)
        return event

    def _check_shapes(self) -> None:
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, shape in self.graph.shapes.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != shape:
                raise UncoupledChannelsError(
                    f"{name!r} has shape {found}, and the pruning of this model left off at {shape}. Load the "
                    "checkpoint it left off with, or use a new TaylorPruning for another model"
                )

    def begin_on(self, device: torch.device) -> None:
        """A fit begins on this device: what another one measured with is gone."""
        self.options, self._meter = self.options.on(device), None

    def measure_with(self, calls: Sequence[ForwardCall], batch: int | None = None) -> None:
        """Get ready to measure, on rank zero alone, and check that the measured parts of the target can be reached.

        A no-op if the target has none, or is met. A check that another fit made already is not repeated.

        Raises:
            TargetUnreachableError: if even the smallest network measures above the target.
        """
        if self._meter or not self.options.target.to_measure or self.done:
            return
        self._meter = Meter(self.model, self.graph, calls, batch)
        if not self.record.events:
            self._check_reachable()

    def _check_reachable(self) -> None:
        scored = [name for name in self.graph.groups if name not in self.blind]
        options = self.options
        try:
            target = options.target if self._meter else options.target.exact
            if target:
                check_reachable(target, self.graph, scored, options.limits(self.graph), meter=self._meter)
        except TargetUnreachableError as error:
            if finer := options.finer():
                self.options = finer
                return self._check_reachable()
            if not self.blind:
                raise
            raise TargetUnreachableError(f"{error}. {options.criterion} cannot score {in_words(self.blind)}") from error

    def close(self) -> None:
        """Take every hook off the model. What was gathered stays, for a checkpoint that is saved after an error."""
        self.scorer.close()

    def fractions(self) -> dict[str, float]:
        """FLOPs, parameters and channels, and what is measured, as fractions of the dense model."""
        now, dense = self.cost, self.dense
        return {
            "flops": now.flops / max(1, dense.flops),
            "params": now.params / max(1, dense.params),
            "channels": now.channels / max(1, dense.channels),
            **self.measured,
        }
