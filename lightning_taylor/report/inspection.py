"""What can be pruned of a network, as data: layer by layer, how far down it goes, and what a schedule would leave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Unpack

from torch import nn

from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.text_table import html_table, text_table
from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.feasibility import check_reachable, smallest
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.limits import NO_LIMITS, MaxRemoved, WidthLimits
from lightning_taylor.plan.record import Record
from lightning_taylor.plan.schedule import Schedule, default_schedule
from lightning_taylor.plan.target import Target
from lightning_taylor.report.dry_run import RULE, InspectedEvent, dry_run
from lightning_taylor.report.layer_costs import flops_now
from lightning_taylor.report.remedies import remedy_for
from lightning_taylor.report.summary import widths_after, widths_now
from lightning_taylor.trace.api import trace_channels
from lightning_taylor.trace.options import TraceChoices

__all__ = ["InspectedLayer", "Inspection", "inspect_model"]


@dataclass(frozen=True)
class InspectedLayer:
    """A layer that carries channels.

    Attributes:
        layer: its qualified name.
        dense: output channels when the model was traced.
        now: output channels now.
        least: output channels with every group at its smallest allowed width.
        flops: its share of the network's present FLOPs, in [0, 1].
        groups: the channel groups that its output channels belong to, by name; empty if none can be removed.
        reason: why its channels, or some of them, have to stay; empty if all can be removed.
        remedy: what would make them removable, where something would.
    """

    layer: str
    dense: int
    now: int
    least: int
    flops: float
    groups: tuple[str, ...]
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Inspection:
    """What ``lightning-taylor inspect`` shows.

    Attributes:
        layers: every channel-carrying layer, in forward order.
        dense: the cost when the model was traced: FLOPs per example (2 per multiply-add), parameters, removable
            channels.
        now: the cost at the present widths; lower than ``dense`` for a pruned checkpoint.
        least: the reachable minimum, with every group at its smallest allowed width.
        asked: resource -> the fraction of the dense model that may remain.
        events: the planned ones of a dry run, or those that a checkpoint remembers.
        rule: what the widths of planned events mean; empty for events that have happened.
        problem: why the target cannot be reached, in words; empty if it can.
        unseen: layers that neither the training nor the evaluation path reached.
    """

    layers: tuple[InspectedLayer, ...]
    dense: Cost
    now: Cost
    least: Cost
    asked: Mapping[str, float] = field(default_factory=dict)
    events: tuple[InspectedEvent, ...] = ()
    rule: str = ""
    problem: str = ""
    unseen: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        target: Target,
        schedule: Schedule | None = None,
        steps: int | None = None,
        *,
        min_channels: int = 1,
        round_to: int = 1,
        max_removed: MaxRemoved | None = None,
        epoch: float = math.inf,
    ) -> Inspection:
        """A dry run of a graph; the arguments are those of ``inspect_model``, and the steps of an epoch."""
        if steps is not None:
            schedule = (schedule or default_schedule(steps)).in_steps(FitLength(steps, epoch))
            schedule.check(steps)
        events, problem = (), ""
        limits = WidthLimits.of(graph, min_channels, round_to, max_removed)
        try:
            if target.exact:
                check_reachable(target.exact, graph, limits=limits)
            events = dry_run(graph, target, schedule, steps, limits)
        except TargetUnreachableError as error:
            problem = str(error)
        found = cls._at(graph, limits)
        return cls(**{**vars(found), "asked": target.asked, "events": events, "rule": RULE, "problem": problem})

    @classmethod
    def after(cls, graph: ChannelGraph, record: Record) -> Inspection:
        """What a pruning left.

        Args:
            graph: at the present widths.
            record: the events from the dense model to these widths.
        """
        events = tuple(
            InspectedEvent(event.step, Cost(event.flops, event.params, event.channels), widths)
            for event, widths in zip(record.events, widths_after(graph, record), strict=True)
        )
        return cls(**{**vars(cls._at(graph, NO_LIMITS)), "events": events})

    @classmethod
    def _at(cls, graph: ChannelGraph, limits: WidthLimits) -> Inspection:
        cost, end = CostModel(graph), smallest(graph, None, limits)
        least = widths_now(end)
        shares, groups = _flops_shares(graph), _groups_by_layer(graph)
        layers = tuple(
            InspectedLayer(
                layer=layer,
                dense=graph.dense[tensor][dim],
                now=graph.shapes[tensor][dim],
                least=least.get(layer, graph.shapes[tensor][dim]),
                flops=shares[layer],
                groups=groups[layer],
                reason=(reason := graph.frozen.get(layer, "")),
                remedy=remedy_for(reason),
            )
            for layer, (tensor, dim) in graph.layers.items()
        )
        return cls(layers, cost.dense, cost.now, CostModel(end).now, unseen=graph.unseen)

    @property
    def met(self) -> bool:
        """Whether the last event meets what was asked for, as far as that follows from the widths."""
        exact = Target(**self.asked).exact if self.asked else None
        return not self.problem and (
            not exact or exact.met(self.events[-1].cost if self.events else self.now, self.dense)
        )

    def __repr__(self) -> str:
        can_shrink = sum(bool(layer.groups) for layer in self.layers)
        target = ", ".join(f"{name}={share:g}" for name, share in self.asked.items()) or "none"
        return (
            f"Inspection({len(self.layers)} layers, {can_shrink} can shrink; {self.now.flops:.3g} FLOPs, "
            f"at least {self.least.flops / self.dense.flops:.1%} of the dense model's remain; "
            f"target {target}{'' if self.met else ' is not met'})"
        )

    def __str__(self) -> str:
        return text_table(repr(self), *self._table())

    def _repr_html_(self) -> str:
        return html_table(repr(self), *self._table())

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, str, int, int, int, str]]]:
        """Return columns and rows: every layer, how far down it goes, what the last event leaves, why it stays."""
        last = self.events[-1].widths if self.events else {}
        rows = [(x.layer, f"{x.flops:.1%}", x.now, x.least, last.get(x.layer, x.now), x.reason) for x in self.layers]
        return ("layer", "FLOPs", "channels", "least", "then", "stays because"), rows

    def to_plain(self) -> dict[str, Any]:
        """Everything in dicts, lists, strings and numbers, for JSON."""
        plain = asdict(self)
        return {**plain, "asked": dict(self.asked), "met": self.met}


def inspect_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: float | Target = 0.5,
    schedule: Schedule | None = None,
    steps: int | None = None,
    ignore: Sequence[str] = (),
    min_channels: int = 1,
    round_to: int = 1,
    max_removed: MaxRemoved | None = None,
    **choices: Unpack[TraceChoices],
) -> Inspection:
    """Look at a model as a fit with ``TaylorPruning`` would, and remove nothing.

    Every channel-carrying layer is listed, with the reason if its channels have to stay, its share of the FLOPs and
    how far down it can go; and for a target, the width of each layer at each event. There are no scores yet, so the
    events remove the same share of every group; see ``Inspection.rule``.

    Args:
        model: any module; it is left as it is.
        example_inputs: what its ``forward`` takes, as for ``trace_channels``.
        target: what may remain, as for ``TaylorPruning``. Latency and memory are left out: a fit measures them.
        schedule: when channels go. None lays the default one over ``steps``; without steps there is one event.
        steps: optimizer steps of the fit; None for as many as the schedule takes.
        ignore: name patterns of layers whose output channels stay.
        min_channels: fewest channels that a group may keep.
        round_to: groups keep a multiple of this many channels.
        max_removed: the largest share of a group's channels that may go, as for ``TaylorPruning``.
        choices: ``allow_inexact_norms``, ``conv_groups``, ``attention_heads`` and ``scope``, as for
            ``trace_channels``.

    Raises:
        UnsupportedModelError: if the model cannot be traced.
        ValueError: for a value outside its range, or a fit that is too short for the schedule.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))
        >>> found = inspect_model(net, torch.rand(1, 3, 16, 16), target=0.5)
        >>> [(layer.layer, layer.now, layer.least, layer.reason) for layer in found.layers]
        [('0', 8, 1, ''), ('2', 5, 5, 'reaches the output')]
        >>> found.events[-1].widths
        {'0': 4}
    """
    graph = trace_channels(model, example_inputs, ignore=ignore, **choices)
    wanted = Target.of(target)
    return Inspection.of(
        graph, wanted, schedule, steps, min_channels=min_channels, round_to=round_to, max_removed=max_removed
    )


def _groups_by_layer(graph: ChannelGraph) -> dict[str, tuple[str, ...]]:
    owners = graph.slices_by_axis()
    return {
        layer: tuple(dict.fromkeys(group for group, _ in owners.get(axis, []))) for layer, axis in graph.layers.items()
    }


def _flops_shares(graph: ChannelGraph) -> dict[str, float]:
    """Layer -> its part of the present FLOPs; those of attention and the like belong to none."""
    flops = dict.fromkeys(graph.layers, 0.0)
    total = 0.0
    for operation in graph.operations:
        own = flops_now(operation, graph)
        total += own
        if operation.module in flops:
            flops[operation.module] += own
    return {layer: own / max(total, 1.0) for layer, own in flops.items()}
