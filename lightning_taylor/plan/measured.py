"""Which channels go when the target is a latency or a memory: the size is searched for, with few measurements.

Measured resources grow with the network's FLOPs, roughly. So the FLOPs that may remain are the knob: a selection is
made for a fraction of them, measured, and the knob is turned along the line through what was measured so far, kept
inside the bracket that closes from both sides.

Noise: a latency is compared with its limit as it was measured, once. Of several candidates near the limit the search
is likely to end on one that was measured a little too fast; its true latency may be above the limit by the noise of
one measurement. The measured figure is handed back with the selection, to be reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.graph.channels import ChannelGraph
from lightning_taylor.plan.meter import Measure
from lightning_taylor.plan.reach import unreachable_message
from lightning_taylor.plan.schedule import Demand
from lightning_taylor.plan.select import Selector
from lightning_taylor.plan.target import Target

__all__ = ["Selection", "select_measured"]

_NEAR = 0.01  # of the dense model: a candidate that is under its limit by no more than this is good enough
_NARROW = 0.004  # of the dense FLOPs: a bracket that is not worth halving
_MARGIN = 0.1  # of the bracket: no guess comes nearer to its ends
_LEAST = 0.02  # of what can go: no step down is smaller, and what is this near to the bottom is the bottom


@dataclass(frozen=True)
class Selection:
    """What an event removes, and what was measured for it.

    Attributes:
        remove: group name -> sorted unique int64 indices into the present width, as from ``select``.
        measured: "latency" and "memory" after the removal, as fractions of the dense model's; those asked for.
    """

    remove: dict[str, Tensor]
    measured: dict[str, float] = field(default_factory=dict)


def select_measured(
    scores: Mapping[str, Tensor],
    graph: ChannelGraph,
    demand: Demand | Target,
    meter: Measure | None = None,
    *,
    now: Mapping[str, float] | None = None,
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

    A demand for a number of channels removes that number and measures once; it stops early only for the exact
    parts, so the last event may go below the target by as much as its channels are worth.

    Args:
        scores: as for ``select``.
        graph: the graph at its present widths.
        demand: what the event has to do; a bare target means "remove until it is met".
        meter: measures the candidates; may be None if the demand names no measured resource.
        now: what was measured of the present widths, at the last event; measured if missing. The dense model needs
            none: it is 1 by definition.
        most: measurements at the most, at least 2.
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
        ...     def ratios(self, shapes, resources):
        ...         return {"latency": 0.4 + 0.6 * shapes["a.weight"][0] / 100}
        >>> selection = select_measured({"a": torch.rand(100)}, graph, Target(latency=0.7), Stopwatch())
        >>> len(selection.remove["a"]), selection.measured
        (51, {'latency': 0.694})
    """
    demand = demand if isinstance(demand, Demand) else Demand(demand, goal=demand)
    limits = {"min_channels": min_channels, "round_to": round_to}
    selector = Selector(scores, graph, **limits, flops_penalty=flops_penalty, flops_power=flops_power)
    if not demand.target.to_measure:
        return Selection(selector.choose(demand))
    if meter is None:
        raise ValueError(f"{demand.target} needs a meter to measure {', '.join(demand.target.to_measure)}")
    if most < 2:
        raise ValueError(f"a search takes at least 2 measurements, got most={most}")
    search = _Search(selector, graph, demand, meter, dict(now or {}), most)
    return search.number(demand.channels) if demand.channels is not None else search.target()


@dataclass(frozen=True)
class _Point:
    """A candidate: its FLOPs, what was measured, and by how much the worst part is over its limit (below 0: met)."""

    selection: Selection
    flops: int
    excess: float

    @property
    def met(self) -> bool:
        return self.excess <= 0


class _Search:
    def __init__(
        self,
        selector: Selector,
        graph: ChannelGraph,
        demand: Demand,
        meter: Measure,
        now: dict[str, float],
        most: int,
    ) -> None:
        self._selector = selector
        self._graph = graph
        self._target, self._goal = demand.target, demand.goal
        self._meter = meter
        self._left = most
        self._dense = max(1, selector.cost.dense.flops)
        self._bottom = selector.cost.at(_counts(selector.everything())).flops
        self._now = now
        if dict(graph.shapes) == dict(graph.dense):
            self._now = dict.fromkeys(demand.target.to_measure, 1.0)

    def number(self, channels: int) -> Selection:
        """So many channels, but no more than the exact parts need once the measured ones are met."""
        here = self._point({})
        exact = self._target.exact
        if here.met:
            remove = self._selector.choose(Demand(exact, channels)) if exact else {}
        else:
            remove = self._selector.at_least(channels)
            if not remove:
                raise self._unreachable(here)
        return self._point(remove).selection

    def target(self) -> Selection:
        """The largest network found that meets every part."""
        exact = self._target.exact
        high = self._point(self._selector.choose(Demand(exact, goal=self._goal)) if exact else {})
        if high.met:
            return high.selection
        above, low = self._anchor(high), None
        while low is None:
            found = self._point(self._down(above, high))
            if found.met:
                low = found
            elif found.flops <= self._bottom:
                raise self._unreachable(found)
            else:
                above, high = high, found
        while self._left and low.excess < -_NEAR and high.flops - low.flops > _NARROW * self._dense:
            found = self._point(self._between(low, high))
            if not low.flops < found.flops < high.flops:
                break
            low, high = (found, high) if found.met else (low, found)
        return low.selection

    def _anchor(self, high: _Point) -> _Point:
        """A second point for the first line: the dense model, or the origin if the dense model is the first."""
        excess = 1 - min(self._target.asked[name] for name in self._target.to_measure)
        if high.flops < self._dense:
            return _Point(Selection({}), self._dense, excess)
        return _Point(Selection({}), 0, excess - 1)

    def _down(self, above: _Point, high: _Point) -> dict[str, Tensor]:
        """Down the line through two points to where it crosses the limit, but by a step and not below the bottom."""
        room = high.flops - self._bottom
        slope = (above.excess - high.excess) / (above.flops - high.flops) if above.flops != high.flops else 0.0
        step = (high.excess + _NEAR / 2) / slope if slope > 0 else room / 2
        step = max(step, _LEAST * room)
        if self._left <= 1 or step >= (1 - _LEAST) * room:
            return self._selector.everything()
        return self._allow(high.flops - step)

    def _between(self, low: _Point, high: _Point) -> dict[str, Tensor]:
        """Where the line between a met and a missed point lies just below the limit, not too near to either."""
        share = (-_NEAR / 2 - low.excess) / (high.excess - low.excess)
        share = min(1 - _MARGIN, max(_MARGIN, share))
        return self._allow(low.flops + share * (high.flops - low.flops))

    def _allow(self, flops: float) -> dict[str, Tensor]:
        exact = self._target.exact
        limit = min(1.0, flops / self._dense)
        if exact is None:
            return self._selector.choose(Demand(Target(flops=limit)))
        return self._selector.choose(Demand(replace(exact, flops=min(limit, exact.flops or 1.0))))

    def _point(self, remove: dict[str, Tensor]) -> _Point:
        names = self._target.to_measure
        if not remove and all(name in self._now for name in names):
            measured = {name: self._now[name] for name in names}
        else:
            self._left -= 1
            measured = dict(self._meter.ratios(self._graph.shrink(remove).shapes, names))
        flops = self._selector.cost.at(_counts(remove)).flops
        excess = max(measured[name] - self._target.asked[name] for name in names)
        return _Point(Selection(remove, measured), flops, excess)

    def _unreachable(self, at: _Point) -> TargetUnreachableError:
        cost = self._selector.cost
        least = cost.at(_counts(at.selection.remove))
        message = unreachable_message(
            self._target, least, cost.dense, len(self._graph.frozen), measured=at.selection.measured
        )
        return TargetUnreachableError(message)


def _counts(remove: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: len(index_R) for name, index_R in remove.items()}
