"""The loop of the paper without a Trainer: score, decide, remove, and remember.

``Pruner`` holds what lives between two events: the graph at its present widths, the scorer, and the record. The
callback only tells it when a batch ended, when gradients are ready, and which optimizers there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_taylor.errors import PruningError, TargetUnreachableError
from lightning_taylor.graph.channels import ChannelGraph
from lightning_taylor.plan import (
    Cost,
    CostModel,
    Event,
    Record,
    Schedule,
    Target,
    check_reachable,
    select,
)
from lightning_taylor.plan.reach import allowed_widths
from lightning_taylor.scores import Criterion, Normalization, Scorer, normalize
from lightning_taylor.surgery import prune_channels

__all__ = ["Options", "Pruner"]


@dataclass(frozen=True)
class Options:
    """What a user asked for; the arguments of ``TaylorPruning`` that outlive its constructor."""

    target: Target
    criterion: Criterion
    normalization: Normalization = "l2"
    flops_penalty: float = 0.0
    min_channels: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.normalization not in get_args(Normalization):
            known = ", ".join(map(repr, get_args(Normalization)))
            raise ValueError(f"normalization must be one of {known}, got {self.normalization!r}")
        if not (math.isfinite(self.flops_penalty) and self.flops_penalty >= 0):
            raise ValueError(f"flops_penalty must be at least 0 (the paper uses 1e-3), got {self.flops_penalty}")
        allowed_widths(1, min_channels=self.min_channels, round_to=self.round_to)


class Pruner:
    """Scores a model's channels and removes them, event by event, down to a target.

    Args:
        model: pruned in place.
        graph: its channel graph at the present widths.
        options: what to reach and how to choose.
        record: the events so far, if the model was pruned before.

    Raises:
        TargetUnreachableError: if the target lies below what the groups that can be scored allow.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, options: Options, record: Record | None = None) -> None:
        self.model = model
        self.graph = graph
        self.options = options
        self.record = record or Record()
        self._cost = CostModel(graph)
        self._scorer: Scorer | None = None
        self.blind: Mapping[str, str] = {}
        """Groups that the criterion cannot score, with the reason."""
        if not self.done:
            self.watch()
            try:
                self._check_reachable()
            except BaseException:
                self.close()
                raise

    @property
    def cost(self) -> Cost:
        """What the model costs now."""
        return self._cost.at({})

    @property
    def dense(self) -> Cost:
        """What the model cost before the first event."""
        return self._cost.dense

    @property
    def done(self) -> bool:
        """Whether the target is met."""
        return self.options.target.met(self.cost, self.dense)

    def watch(self) -> None:
        """Start to gather scores at the present widths; the scores so far are dropped."""
        self.close()
        self._scorer = self.options.criterion.watch(self.model, self.graph, event=len(self.record.events))
        self.blind = dict(self._scorer.blind)

    def end_batch(self, examples: int, grad_scale: float = 1.0) -> None:
        """Take what the hooks gathered in one micro-batch into the scores."""
        if self._scorer:
            self._scorer.end_batch(examples=examples, grad_scale=grad_scale)

    def before_step(self) -> None:
        """Take the gradients of one optimizer step into the scores: synchronised, unscaled, before clipping."""
        if self._scorer:
            self._scorer.before_step()

    def synchronize(self) -> None:
        """Sum the scores over all ranks of ``torch.distributed``; nothing on a single process."""
        if self._scorer:
            self._scorer.sync()

    def decide(self, schedule: Schedule, step: int) -> dict[str, Tensor]:
        """Which channels go at this event: sorted indices per group; nothing is touched.

        Raises:
            PruningError: if no group has a score yet.
        """
        scores = self._scorer.scores() if self._scorer else {}
        if not scores:
            raise PruningError(
                f"no channel has a score at step {step}: no gradient reached a consumer of any group since the last "
                "event. Start later, or check that the layers are trained and not frozen"
            )
        options = self.options
        return select(
            normalize(scores, options.normalization),
            self.graph,
            schedule.demand(step, options.target),
            min_channels=options.min_channels,
            round_to=options.round_to,
            flops_penalty=options.flops_penalty,
        )

    def remove(self, remove: Mapping[str, Tensor], step: int, optimizers: Sequence[torch.optim.Optimizer]) -> Event:
        """Cut the channels out of the model and its optimizers, and start to score what is left."""
        began = time.perf_counter()
        if remove:
            self.close()
            self.graph = prune_channels(self.model, self.graph, remove, optimizers=optimizers)
            self._cost = CostModel(self.graph)
        cost = self.cost
        event = Event(
            step=step,
            removed={name: index_R.tolist() for name, index_R in remove.items()},
            flops=cost.flops,
            params=cost.params,
            channels=cost.channels,
            seconds=time.perf_counter() - began,
        )
        self.record.append(event)
        if not self.done:
            self.watch()
        return event

    def _check_reachable(self) -> None:
        scored = [name for name in self.graph.groups if name not in self.blind]
        options = self.options
        limits = {"min_channels": options.min_channels, "round_to": options.round_to}
        try:
            check_reachable(options.target, self.graph, scored, **limits)
        except TargetUnreachableError as error:
            if not self.blind:
                raise
            unscored = "; ".join(f"{name}: {why}" for name, why in self.blind.items())
            raise TargetUnreachableError(f"{error}. {options.criterion} cannot score {unscored}") from error

    def close(self) -> None:
        """Take every hook off the model."""
        if self._scorer:
            self._scorer.close()
            self._scorer = None

    def fractions(self) -> dict[str, float]:
        """FLOPs, parameters and channels as fractions of the dense model."""
        now, dense = self.cost, self.dense
        return {
            "flops": now.flops / max(1, dense.flops),
            "params": now.params / max(1, dense.params),
            "channels": now.channels / max(1, dense.channels),
        }

    def scorer_state(self) -> dict[str, Any]:
        """The half-full accumulators, as plain tensors."""
        return self._scorer.state() if self._scorer else {}

    def load_scorer_state(self, state: Mapping[str, Any]) -> None:
        """Go on from half-full accumulators."""
        if self._scorer and state:
            self._scorer.load_state(dict(state))
