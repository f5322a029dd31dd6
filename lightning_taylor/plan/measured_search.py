"""The search for a size whose measured latency and memory lie just within their limits.

Measured resources grow with the network's FLOPs, roughly. So the FLOPs that may remain are the knob: a selection is
made for a fraction of them, measured, and the knob is turned along the line through what was measured so far, kept
inside the bracket that closes from both sides. The line deceives where the peak of the memory lies in another layer, or
a device's steps are coarse. So a guess that did not halve the bracket is followed by the bracket's middle.

Noise: the candidate that a search ends on is likely to be one that was measured too fast. On a machine with three
processes for each core, a measurement of two seconds had a standard deviation of 4 %, and two fits that said 0.681 and
0.696 of the dense latency had 0.718 and 0.723. So what would end the pruning is measured again, with care, and the
knob is turned until that measurement is within the limit; it is the one that is handed back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.memory_curve import MemoryCurve
from lightning_taylor.measure.meter import Measure
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.feasibility import unreachable_message
from lightning_taylor.plan.limits import NO_LIMITS, WidthLimits
from lightning_taylor.plan.memory_limit import MemoryLimit
from lightning_taylor.plan.schedule import Demand
from lightning_taylor.plan.select import Selector
from lightning_taylor.plan.target import Target

__all__ = [
    "Search",
    "Selection",
    "select_measured",
]

_NEAR = 0.01  # of the dense model: a candidate that is under its limit by no more than this is good enough

_NARROW = 0.004  # of the dense FLOPs: a bracket that is not worth halving

_MARGIN = 0.1  # of the bracket: no guess comes nearer to its ends

_LEAST = 0.02  # of what can go: no step down is smaller, and what is this near to the bottom is the bottom

_FLATTEST = 0.1  # of latency per FLOPs, both of the dense model: no step follows a flatter line

_COUNTED = 3  # times as many measurements where none takes time: memory is counted by passes without data

_CORRECTIONS = 8  # of the memory's curve, at most

_CAREFUL = 3  # measurements with care, after which the best that meets the limit is taken


@dataclass(frozen=True)
class Selection:
    """What an event removes, and what was measured for it.

    Attributes:
        remove: group name -> sorted unique int64 indices into the present width, as from ``select``.
        measured: "latency" and "memory" after the removal, as fractions of the dense model's; those asked for.
    """

    remove: dict[str, Tensor]
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A candidate: its FLOPs, what was measured, and by how much the worst part is over its limit (below 0: met)."""

    selection: Selection
    flops: int
    excess: float

    @property
    def met(self) -> bool:
        return self.excess <= 0


class Search:
    """One event's search; ``number`` or ``target`` is its answer.

    Args:
        selector: chooses the channels for a demand.
        graph: as for ``select_measured``.
        demand: as for ``select_measured``.
        meter: measures the candidates.
        now: what was measured of the present widths.
        most: as for ``select_measured``.
        curve: as for ``select_measured``.
    """

    def __init__(
        self,
        selector: Selector,
        graph: ChannelGraph,
        demand: Demand,
        meter: Measure,
        now: dict[str, float],
        most: int,
        curve: MemoryCurve | None,
    ) -> None:
        self._selector = selector
        self._graph = graph
        self._target, self._goal = demand.target, demand.goal or demand.target
        self._meter = meter
        self._left = most if "latency" in demand.target.to_measure else _COUNTED * most
        self._dense = max(1, selector.cost.dense.flops)
        self._bottom = selector.cost.at(_counts(selector.everything())).flops
        self._room = 1 - min(demand.target.asked[name] for name in demand.target.to_measure)
        self._curve = curve if demand.target.memory is not None else None
        self._memory: MemoryLimit | None = None
        self._now = now
        if dict(graph.shapes) == dict(graph.dense):
            self._now = dict.fromkeys(demand.target.to_measure, 1.0)

    def number(self, channels: int) -> Selection:
        """So many channels, but no more than the exact parts need once the measured ones are met."""
        here = self._point({})
        if here.met:
            remove = self._selector.choose(Demand(exact, channels)) if (exact := self._target.exact) else {}
        else:
            remove = self._selector.at_least(channels)
            if not remove:
                raise self._unreachable(here)
        found = self._point(remove)
        return (self._point(remove, careful=True) if self._would_end(found) else found).selection

    def target(self) -> Selection:
        """The largest network found that meets every part."""
        found = self._search()
        if not self._would_end(found):
            return found.selection
        if self._target != self._goal:
            return self._point(found.selection.remove, careful=True).selection
        return self._settled(found).selection

    def _search(self) -> Point:
        high = self._known()
        if high.met:
            return high
        above, low, span = self._anchor(high), None, 2 * (high.flops - self._bottom)
        while low is None or (self._left and low.excess < -_NEAR and high.flops - low.flops > _NARROW * self._dense):
            before, span = span, high.flops - (low.flops if low else self._bottom)
            if low is None and self._left <= 1:
                remove = self._selector.everything()
            elif 2 * span > before:
                remove = self._allow(high.flops - span / 2)
            else:
                remove = self._between(low, high) if low else self._down(above, high)
            found = self._point(remove)
            if low and not low.flops < found.flops < high.flops:
                break
            if not found.met and found.flops <= self._bottom:
                found = self._point(found.selection.remove, careful=True)
                if not found.met:
                    raise self._unreachable(found)
            if found.met:
                low = found
            else:
                above, high = high, found
        return low

    def _known(self) -> Point:
        """What the parts that need no measurement ask for: the exact ones, and memory as far as its curve is right.

        The curve's limit is corrected by what was measured where it led: by the difference, until one limit was met and
        one was not, and then to the middle of the two. It is left alone where it never leads within the target's.
        """
        limit, best, left = self._target.memory, None, self._left
        share, met, missed = limit, None, None
        for _ in range(_CORRECTIONS):
            if limit is None or share is None or self._curve is None:
                break
            self._memory = MemoryLimit(self._curve, self._selector.cost, share)
            try:
                found = self._point(self._choose())
            except TargetUnreachableError:
                break
            has = found.selection.measured["memory"]
            over = self._memory.over(self._selector.cost.counts(_counts(found.selection.remove)))
            if has <= limit:
                met, best = share, found if best is None or has > best.selection.measured["memory"] else best
                if has >= limit - _NEAR or abs(has - share - over) <= _NEAR / 2:  # or as near as its steps are fine
                    break
            else:
                missed = share
            share = (met + missed) / 2 if met and missed else share + limit - _NEAR / 4 - (has - over)
        self._left = left - (best is not None)  # corrections come on top
        if best:
            return best
        self._memory = None
        return self._point(self._choose() if self._target.exact else {})

    def _choose(self, flops: float | None = None) -> dict[str, Tensor]:
        """Choose by the parts that need no measurement, and by a share of the FLOPs."""
        parts = dict(self._target.exact.asked) if self._target.exact else {}
        if self._memory and self._target.memory:
            parts["memory"] = self._target.memory
        if flops is None:
            return self._selector.choose(Demand(Target(**parts), goal=self._goal), self._memory)
        parts["flops"] = min(flops, parts.get("flops", 1.0))
        return self._selector.choose(Demand(Target(**parts)), self._memory)

    def _would_end(self, found: Point) -> bool:
        """Whether a figure that is noisy, and was taken at this event, says that the goal is reached."""
        cost, removed = self._selector.cost, found.selection.remove
        noisy = "latency" in self._target.to_measure and bool(removed)
        return noisy and self._goal.met(cost.at(_counts(removed)), cost.dense, found.selection.measured)

    def _settled(self, found: Point) -> Point:
        """A point near to the one that was found, which meets its limits where it is measured with care.

        While none does, each try aims twice as far below the limit as the one before, so that it ends.
        """
        point, tried, aim = self._point(found.selection.remove, careful=True), {found.flops}, _NEAR / 2
        best, missed = (point, None) if point.met else (None, point)
        while best is None or (best.excess < -_NEAR and len(tried) < _CAREFUL):
            if best is None and point.flops <= self._bottom:
                raise self._unreachable(point)
            if best and missed and best.flops < missed.flops:
                remove = self._between(best, missed)
            else:
                slope = max((self._room - point.excess) / max(1, self._dense - point.flops), _FLATTEST / self._dense)
                remove = self._allow(max(self._bottom, point.flops - (point.excess + aim) / slope))
            flops = self._flops(remove)
            if flops in tried and best is not None:
                break
            if flops in tried:
                remove = self._selector.everything()
            tried.add(flops)
            point = self._point(remove, careful=True)
            if point.met:
                best = point if best is None or point.flops > best.flops else best
            else:
                missed = point if missed is None or point.flops < missed.flops else missed
                aim *= 1 if best else 2
        return best

    def _anchor(self, high: Point) -> Point:
        """A second point for the first line: the dense model, or the origin if the dense model is the first."""
        if high.flops < self._dense:
            return Point(Selection({}), self._dense, self._room)
        return Point(Selection({}), 0, self._room - 1)

    def _down(self, above: Point, high: Point) -> dict[str, Tensor]:
        """Down the line through two points to where it crosses the limit, but by a step and not below the bottom."""
        room = high.flops - self._bottom
        slope = (above.excess - high.excess) / (above.flops - high.flops) if above.flops != high.flops else 0.0
        step = (high.excess + _NEAR / 2) / slope if slope > 0 else room / 2
        step = max(step, _LEAST * room)
        if step >= (1 - _LEAST) * room:
            return self._selector.everything()
        return self._allow(high.flops - step)

    def _between(self, low: Point, high: Point) -> dict[str, Tensor]:
        """Where the line between a met and a missed point lies just below the limit, not too near to either."""
        share = (-_NEAR / 2 - low.excess) / (high.excess - low.excess)
        share = min(1 - _MARGIN, max(_MARGIN, share))
        return self._allow(low.flops + share * (high.flops - low.flops))

    def _allow(self, flops: float) -> dict[str, Tensor]:
        if flops <= self._bottom:  # as a share of the dense model's it could be rounded to one that is out of reach
            return self._selector.everything()
        return self._choose(min(1.0, flops / self._dense))

    def _point(self, remove: dict[str, Tensor], *, careful: bool = False) -> Point:
        names = self._target.to_measure
        if not remove and all(name in self._now for name in names):
            measured = {name: self._now[name] for name in names}
        else:
            self._left -= not careful
            measured = dict(self._meter.ratios(self._graph.shrink(remove).shapes, names, careful=careful))
        excess = max(measured[name] - self._target.asked[name] for name in names)
        return Point(Selection(remove, measured), self._flops(remove), excess)

    def _flops(self, remove: Mapping[str, Tensor]) -> int:
        return self._selector.cost.at(_counts(remove)).flops

    def _unreachable(self, at: Point) -> TargetUnreachableError:
        cost = self._selector.cost
        least = cost.at(_counts(at.selection.remove))
        message = unreachable_message(
            self._target, least, cost.dense, len(self._graph.frozen), measured=at.selection.measured
        )
        return TargetUnreachableError(message)


def _counts(remove: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: len(index_R) for name, index_R in remove.items()}


def select_measured(
    scores: Mapping[str, Tensor],
    graph: ChannelGraph,
    demand: Demand | Target,
    meter: Measure | None = None,
    *,
    now: Mapping[str, float] | None = None,
    cost: CostModel | None = None,
    most: int = 8,
    curve: MemoryCurve | None = None,
    limits: WidthLimits = NO_LIMITS,
    cost_penalty: float = 0.0,
    cost_power: float = 0.0,
    prices: Mapping[str, float] | None = None,
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
        most: measurements of latency at the most, at least 2; careful ones and corrections of the curve come on top. Of
            memory alone three times as many.
        curve: of the memory, at the graph's widths: then the channels that memory asks for are chosen as those that
            FLOPs ask for, and the result is measured once, or until the curve is corrected.
        limits: of the widths.
        cost_penalty: as for ``select``.
        cost_power: as for ``select``.
        prices: as for ``select``.

    Raises:
        ValueError: as ``select``; if a measured resource is demanded without a meter; for ``most`` below 2.
        PruningError: as ``select``.
        TargetUnreachableError: if the demand is not met with every scored group at its minimum, with the figure
            measured there.

    Example:
        >>> import torch
        >>> from lightning_taylor.graph.types import ChannelGroup, Operation, Role, Slice
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
    selector = Selector(
        scores,
        graph,
        limits,
        cost=cost,
        cost_penalty=cost_penalty,
        cost_power=cost_power,
        prices=prices,
    )
    if not demand.target.to_measure:
        return Selection(selector.choose(demand))
    if meter is None:
        raise ValueError(f"{demand.target} needs a meter to measure {', '.join(demand.target.to_measure)}")
    if most < 2:
        raise ValueError(f"a search takes at least 2 measurements, got most={most}")
    search = Search(selector, graph, demand, meter, dict(now or {}), most, curve)
    return search.number(demand.channels) if demand.channels is not None else search.target()
