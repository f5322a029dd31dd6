"""Which channels go: the ranking is cut where the demand is met, and what went needlessly is put back.

The cost falls along the prefixes of the ranking, hence the shortest one that meets the demand is found by
bisection: some twenty evaluations of the cost model, however many channels there are.

Shape legend: C = channels of a group, G = groups.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_taylor.errors import TargetUnreachableError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.feasibility import unreachable_message
from lightning_taylor.plan.landing import landed
from lightning_taylor.plan.limits import Least, WidthLimits
from lightning_taylor.plan.memory_limit import MemoryLimit
from lightning_taylor.plan.price import channel_prices
from lightning_taylor.plan.ranking import Counts, Ranking, checked_scores
from lightning_taylor.plan.schedule import Demand
from lightning_taylor.plan.target import Target

__all__ = ["Selector", "select"]

_NEVER_MET = Target(channels=1e-12)  # less than one channel of anything
_NEAR = 0.01  # of the dense model: a fit's target is not undercut by more than this where another choice lands closer


def select(
    scores: Mapping[str, Tensor],
    graph: ChannelGraph,
    demand: Demand | Target,
    *,
    min_channels: Least = 1,
    round_to: int = 1,
    cost_penalty: float = 0.0,
    cost_power: float = 0.0,
    prices: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    r"""The least important channels whose removal meets a demand.

    .. math::  \hat\Theta_c = \Theta_c \,/\, \pi_{g(c)}^p - \lambda\, \pi_{g(c)}

    All channels are ranked together by score, in proportion to their cost, minus penalty; ties go by group order in
    the graph, then by index.
    The shortest prefix of the ranking that meets the demand is taken, and then, from the most important channel
    down, each one is put back that the demand can do without, since the last one taken may have saved far more
    than was missing. Of what is removed in the end no group could keep even one block more. Where that still ends
    more than a hundredth of the dense model below the fit's own target, the block that was taken last is passed over
    for the ones that follow in the ranking, and the closest of these choices is made. If that is too far still, other
    combinations are looked for that are not (``lightning_taylor.plan.landing``): in a small net one channel of a
    residual stage can be worth several per cent. The same arguments give the same answer on every machine.

    Units: scores are compared with each other across groups, so normalise them before. The price of a channel is what
    its removal saves *now*: of FLOPs, in MFLOPs (1e6 per example, 2 per multiply-add), unless ``prices`` says other
    ones (``lightning_taylor.plan.price``). The penalty is in score units per unit of the price.

    Args:
        scores: group name -> shape ``(C,)``, any real dtype and device, larger is more important; read only.
            Groups without scores keep all their channels.
        graph: the graph at its present widths.
        demand: what the event has to do; a bare target means "remove until it is met", as the goal of a fit.
        min_channels: every group keeps at least this many (or all it has, if fewer); of a mapping, each its own number.
        round_to: kept counts are multiples of this, rounded up; a group's present width is always allowed.
        cost_penalty: lambda of Eq. 9, where the price is one of FLOPs; the paper uses 1e-3 where it uses it.
        cost_power: p: 0 leaves the scores alone, 1 ranks by score per price.
        prices: group name -> what one of its channels costs, above 0; MFLOPs if None.

    Returns:
        Group name -> sorted unique int64 indices into the present width, on the CPU; groups that lose nothing are
        left out. Empty if the demand is met already. If a number of channels was demanded with ``round_to``
        above 1, it is reached or exceeded by less than one block; if fewer than that can go, all of them do.

    Raises:
        ValueError: for an unknown group, scores of the wrong shape, a bad option, or a demand of latency or memory
            (``select_measured`` is for those).
        PruningError: for scores that are not finite, naming the group.
        TargetUnreachableError: if the demand is not met with every scored group at its minimum.

    Source: Molchanov et al. 2017, sections 2 and 2.4 (Eq. 9).

    Example:
        >>> import torch
        >>> from lightning_taylor.graph.types import ChannelGroup, Role, Slice
        >>> a = ChannelGroup("a", (Slice("a.weight", 0, torch.arange(4)[:, None], Role.PRODUCER),))
        >>> shapes = {"a.weight": (4, 3)}
        >>> graph = ChannelGraph({"a": a}, {}, {}, shapes, shapes, frozenset(shapes))
        >>> select({"a": torch.tensor([0.3, 0.0, 0.0, 0.0])}, graph, Target(channels=0.5))
        {'a': tensor([1, 2])}
    """
    selector = Selector(
        scores,
        graph,
        WidthLimits(min_channels, round_to),
        cost_penalty=cost_penalty,
        cost_power=cost_power,
        prices=prices,
    )
    return selector.choose(demand if isinstance(demand, Demand) else Demand(demand, goal=demand))


class Selector:
    """One ranking of a graph's channels, to be cut as often as one likes.

    Args are those of ``select``, with the limits of the widths in one, and ``cost``: that of the graph, if it is there
    already.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        graph: ChannelGraph,
        limits: WidthLimits,
        *,
        cost: CostModel | None = None,
        cost_penalty: float = 0.0,
        cost_power: float = 0.0,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        self.cost = cost or CostModel(graph)
        weighed = checked_scores(scores, graph)
        if any([_checked("cost_penalty", cost_penalty), _checked("cost_power", cost_power)]):
            price = prices or channel_prices(Target(flops=1.0), graph, self.cost).by_group
            weighed = {n: s_C / price[n] ** cost_power - cost_penalty * price[n] for n, s_C in weighed.items()}
        self._ranking = Ranking.of(weighed, graph, limits)

    def choose(self, demand: Demand, memory: MemoryLimit | None = None) -> dict[str, Tensor]:
        """The least important channels whose removal meets a demand; as ``select``.

        Args:
            demand: what the event has to do.
            memory: the limit of the memory that the demand asks for, if it does.

        Raises:
            ValueError: if the demand asks for latency, which this cannot tell, or for memory without a limit.
            TargetUnreachableError: if the demand is not met with every scored group at its minimum.
        """
        unknown = [name for name in demand.target.to_measure if name != "memory" or memory is None]
        if unknown:
            raise ValueError(f"{demand.target} needs a measurement of {', '.join(unknown)}; see select_measured")
        goal, ranking = _Goal(self.cost, demand, demand.target.limits(self.cost.dense), memory), self._ranking
        best_G: Counts | None = None
        order = np.arange(len(ranking))
        while (length := _shortest(ranking, order, goal)) is not None:
            removed_G = _give_back(ranking, order[:length], goal)
            if best_G is None or goal.undercut(removed_G) < goal.undercut(best_G):
                best_G = removed_G
            if length == 0 or goal.undercut(best_G) <= _NEAR:
                break
            order = _passed_over(ranking, order, length - 1)
        if best_G is None:
            return _everything(ranking, goal)
        if goal.undercut(best_G) > _NEAR:
            best_G = landed(ranking, goal, best_G, _NEAR)
            best_G = _give_back(ranking, ranking.blocks(best_G), goal)
        return ranking.channels(best_G)

    def everything(self) -> dict[str, Tensor]:
        """All channels that may go: every scored group at its smallest allowed width."""
        return self._ranking.channels(self._ranking.counts(slice(None)))

    def at_least(self, channels: int) -> dict[str, Tensor]:
        """So many of the least important channels, as for ``Demand.channels``; all that may go if those are fewer."""
        return self.choose(Demand(_NEVER_MET, channels)) if len(self._ranking) else {}


@dataclass(frozen=True)
class _Goal:
    """Whether a removal does what is demanded; once it does, removing more still does."""

    cost: CostModel
    demand: Demand
    limits: Mapping[str, int]
    memory: MemoryLimit | None = None

    def met(self, removed_G: Counts) -> bool:
        if self.demand.channels is not None and removed_G.sum() >= self.demand.channels:
            return True
        cost = self.cost.at_counts(removed_G)
        if not all(getattr(cost, name) <= limit for name, limit in self.limits.items()):
            return False
        return self.memory is None or self.memory.over(removed_G) <= 0

    def undercut(self, removed_G: Counts) -> float:
        """How far a removal goes below the fit's target, in dense models; 0 if that is not at stake."""
        target = self.demand.goal
        # Not of memory: where one layer makes the peak, what could go in place of its channel saves next to nothing.
        if target is None or target.exact is None or self.demand.channels is not None or self.memory:
            return 0.0
        has = target.exact.achieved(self.cost.at_counts(removed_G), self.cost.dense)
        return min(fraction - has[name] for name, fraction in target.exact.asked.items())

    def undercuts(self, removed_NG: Counts) -> NDArray[np.float64]:
        """The same for many removals at once, shape ``(N,)``; infinite where the demand is not met."""
        assert self.demand.goal is not None
        assert self.demand.goal.exact is not None
        has = self.cost.fractions_at(removed_NG)
        under_N = np.min([share - has[name] for name, share in self.demand.goal.exact.asked.items()], axis=0)
        dense = self.cost.dense
        met_N = [has[name] <= limit / max(1, getattr(dense, name)) for name, limit in self.limits.items()]
        return np.where(np.all(met_N, axis=0), under_N, np.inf)


def _checked(name: str, value: float) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value}")
    return value


def _everything(ranking: Ranking, goal: _Goal) -> dict[str, Tensor]:
    """All that may go, where that is less than a demanded number of channels; too little for a target raises."""
    removed_G = ranking.counts(slice(None))
    if goal.demand.channels is None or not len(ranking):
        least = goal.cost.at_counts(removed_G)
        raise TargetUnreachableError(unreachable_message(goal.demand.target, least, goal.cost.dense))
    return ranking.channels(removed_G)


def _shortest(ranking: Ranking, order: Counts, goal: _Goal) -> int | None:
    """How many of these blocks, from the first on, meet the goal; None if all of them do not."""
    length = bisect_left(range(len(order) + 1), True, key=lambda k: goal.met(ranking.counts(order[:k])))
    return None if length > len(order) else length


def _passed_over(ranking: Ranking, order: Counts, k: int) -> Counts:
    """The order without its k-th block, and without the later ones of that group, which can only go after it."""
    return np.concatenate([order[:k], order[k:][ranking.owners[order[k:]] != ranking.owners[order[k]]]])


def _give_back(ranking: Ranking, taken: Counts, goal: _Goal) -> Counts:
    """Walk the taken blocks from the most important down and put back each that the goal can do without.

    Putting a block back only makes every later one dearer, and a group's blocks can only return in their order:
    so a group that fails once has failed for good, and the run up to the next failure is found by bisection. That
    is the walk one by one, with about as many evaluations as there are groups instead of as there are channels.
    """
    removed_G = ranking.counts(taken)
    walk = taken[::-1]
    while walk.size:
        run = _longest_run(ranking, walk, removed_G, goal)
        removed_G = removed_G - ranking.counts(walk[:run])
        if run == walk.size:
            break
        failed = ranking.owners[walk[run]]
        walk = walk[run + 1 :]
        walk = walk[ranking.owners[walk] != failed]
    return removed_G


def _longest_run(ranking: Ranking, walk: Counts, removed_G: Counts, goal: _Goal) -> int:
    """How many blocks of the walk, one after the other, can be put back."""

    def breaks(run: int) -> bool:
        return not goal.met(removed_G - ranking.counts(walk[:run]))

    return _first(breaks, walk.size) - 1


def _first(is_true: Callable[[int], bool], most: int) -> int:
    """The first number from 1 on for which a monotone condition holds, by doubling steps; ``most + 1`` if none."""
    low, high = 0, 1
    while high <= most and not is_true(high):
        low, high = high, 2 * high
    candidates = range(low + 1, min(high, most + 1))
    return low + 1 + bisect_left(candidates, True, key=is_true)
