"""Which channels go when the target is a latency or a memory: the size is searched for, with few measurements."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.meter import Measure
from lightning_taylor.plan.schedule import Demand
from lightning_taylor.plan.search import Search, Selection
from lightning_taylor.plan.select import Selector
from lightning_taylor.plan.target import Target

__all__ = ["Selection", "select_measured"]


def select_measured(
    scores: Mapping[str, Tensor],
    graph: ChannelGraph,
    demand: Demand | Target,
    meter: Measure | None = None,
    *,
    now: Mapping[str, float] | None = None,
    cost: CostModel | None = None,
    most: int = 8,
    min_channels: int = 1,
    round_to: int = 1,
    flops_penalty: float = 0.0,
    flops_power: float = 0.0,
) -> Selection:
    """The least important channels whose removal meets a demand that may name latency and memory.

    The exact parts of the demand are met as by ``select``. If that does not do for the measured ones, fewer and
    fewer FLOPs are allowed until it does, and then as many as still do: every measured part ends within its limit,
    and at least one within a hundredth of the dense model below it, unless the network's steps are coarser than
    that or the measurements run out. The same measurements give the same answer.

    Of a latency, what would end the pruning is measured again, with care (``Measure.ratios``), and changed until that
    measurement is within the limit; so a target ends as near to it as careful measurements are.

    A demand for a number of channels removes that number and measures once; it stops early only for the exact
    parts, so the last event may go below the target by as much as its channels are worth.

    Args:
        scores: as for ``select``.
        graph: the graph at its present widths.
        demand: what the event has to do; a bare target means "remove until it is met".
        meter: measures the candidates; may be None if the demand names no measured resource.
        now: what was measured of the present widths, at the last event; measured if missing. The dense model needs
            none: it is 1 by definition.
        cost: that of the graph, if it is there already.
        most: measurements of the search at the most, at least 2; careful ones come on top.
        min_channels: as for ``select``.
        round_to: as for ``select``.
        flops_penalty: as for ``select``.
        flops_power: as for ``select``.

    Raises:
        ValueError: as ``select``; if a measured resource is demanded without a meter; for ``most`` below 2.
        PruningError: as ``select``.
        TargetUnreachableError: if the demand is not met with every scored group at its minimum, with the figure
            measured there.

    Example:
        >>> import torch
        >>> from lightning_taylor.graph.channels import ChannelGroup, Operation, Role, Slice
        >>> a = ChannelGroup("a", (Slice("a.weight", 0, torch.arange(100)[:, None], Role.PRODUCER),))
        >>> shapes, operation = {"a.weight": (100, 3)}, Operation("a", "mm", 600, (("a.weight", 0),))
        >>> graph = ChannelGraph({"a": a}, {}, {}, shapes, shapes, frozenset(shapes), (operation,))
        >>> class Stopwatch:
        ...     def ratios(self, shapes, resources, *, careful=False):
        ...         return {"latency": 0.4 + 0.6 * shapes["a.weight"][0] / 100}
        >>> selection = select_measured({"a": torch.rand(100)}, graph, Target(latency=0.7), Stopwatch())
        >>> len(selection.remove["a"]), selection.measured
        (51, {'latency': 0.694})
    """
    demand = demand if isinstance(demand, Demand) else Demand(demand, goal=demand)
    limits = {"min_channels": min_channels, "round_to": round_to}
    selector = Selector(scores, graph, cost=cost, **limits, flops_penalty=flops_penalty, flops_power=flops_power)
    if not demand.target.to_measure:
        return Selection(selector.choose(demand))
    if meter is None:
        raise ValueError(f"{demand.target} needs a meter to measure {', '.join(demand.target.to_measure)}")
    if most < 2:
        raise ValueError(f"a search takes at least 2 measurements, got most={most}")
    search = Search(selector, graph, demand, meter, dict(now or {}), most)
    return search.number(demand.channels) if demand.channels is not None else search.target()
