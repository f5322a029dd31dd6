"""What a schedule would do to a network's widths, before any training: the events, with scores that nobody has yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.limits import NO_LIMITS, WidthLimits
from lightning_taylor.plan.schedule import Demand, Schedule
from lightning_taylor.plan.select import Selector
from lightning_taylor.plan.target import Target
from lightning_taylor.report.summary import widths_now

__all__ = ["RULE", "InspectedEvent", "dry_run"]

RULE = (
    "A dry run has no scores: after each event every group has lost the same share of its channels. In a fit the "
    "scores decide which layers lose more, on the way to the same totals."
)
"""What the widths of a dry run mean, for whoever reads them."""

_LONGEST = 10**6  # optimizer steps that are looked through for events where the length of the fit is not known


@dataclass(frozen=True)
class InspectedEvent:
    """The network after one event.

    Attributes:
        step: the optimizer step after which channels are removed; None for "at some time".
        cost: FLOPs, parameters and channels afterwards.
        widths: layer -> output channels afterwards, for every layer that can lose some.
    """

    step: int | None
    cost: Cost
    widths: Mapping[str, int]


def dry_run(
    graph: ChannelGraph,
    target: Target,
    schedule: Schedule | None = None,
    steps: int | None = None,
    limits: WidthLimits = NO_LIMITS,
) -> tuple[InspectedEvent, ...]:
    """The events on the way to a target, if channels of equal rank within their groups were equally important.

    Args:
        graph: the graph at its present widths, of which every group counts as scored.
        target: what may remain; only its exact parts count, since the others have to be measured.
        schedule: when and how much; None for all at once, at no step in particular.
        steps: optimizer steps of the fit; None for as many as the schedule takes.
        limits: of the widths.

    Returns:
        The events, up to the one that meets the target; the last one falls short of it if the steps do not suffice.

    Raises:
        TargetUnreachableError: if the target is not met with every group at its minimum.

    Example:
        >>> from lightning_taylor.trace.api import trace_channels
        >>> from lightning_taylor.plan import OneShot
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = trace_channels(net, torch.rand(1, 3))
        >>> [(e.step, dict(e.widths)) for e in dry_run(graph, Target(channels=0.5), OneShot(10))]
        [(10, {'0': 4})]
    """
    exact = target.exact
    if exact is None:
        return ()
    events: list[InspectedEvent] = []
    sizes = {name: group.size for name, group in graph.groups.items()}
    for step, demand in _demands(schedule, exact, steps):
        cost = CostModel(graph)
        if exact.met(cost.now, cost.dense):
            break
        graph = graph.shrink(Selector(_even(graph, sizes), graph, limits, cost=cost).choose(demand))
        after = CostModel(graph)
        events.append(InspectedEvent(step, after.now, widths_now(graph)))
        if exact.met(after.now, after.dense):
            break
    return tuple(events)


def _demands(schedule: Schedule | None, target: Target, steps: int | None) -> Iterator[tuple[int | None, Demand]]:
    if schedule is None:
        yield None, Demand(target, goal=target)
        return
    for step in range(1, (steps or _LONGEST) + 1):
        if schedule.is_event(step):
            yield step, schedule.demand(step, target)


def _even(graph: ChannelGraph, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Scores that a common threshold cuts at the same share of every group, of what it had at the beginning.

    A share of what it has now would always be rounded the same way, and small groups would never lose a channel.
    """
    ranks = {name: torch.arange(sizes[name] - group.size, sizes[name]) for name, group in graph.groups.items()}
    return {name: (rank_C + 0.5) / sizes[name] for name, rank_C in ranks.items()}
