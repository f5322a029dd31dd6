"""What a graph costs at given widths: FLOPs, parameters and channels, without the model and without a trace.

Every operation of the trace knows which tensor dimensions its FLOPs are proportional to, and every parameter is
as large as the product of its dimensions, so both costs are sums of products of widths. A width is linear in the
number of channels that each group loses. That makes "what if these groups lost so many channels" two small numpy
expressions, cheap enough to ask dozens of times per event.

Shape legend: G = groups, A = distinct widths, K = terms of a sum of products, B, N = what-ifs asked at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Axis

__all__ = ["Cost", "CostModel"]

_Spans = dict[Axis, dict[int, int]]
_ONE = 0  # the position among the widths that always holds 1: pads terms of fewer factors


@dataclass(frozen=True)
class Cost:
    """What a model takes at some widths.

    Attributes:
        flops: FLOPs per example of the evaluation path, 2 per multiply-add, contractions only.
        params: number of parameter entries; tied parameters count once, buffers do not.
        channels: number of removable channels, frozen ones left out.
    """

    flops: int
    params: int
    channels: int


class CostModel:
    r"""The cost of one graph at any smaller widths.

    .. math::  F = \sum_o F_o \prod_{a \in o} \frac{w_a}{W_a}, \qquad
               P = \sum_p \prod_d w_{pd}, \qquad
               w_a = w^{now}_a - \sum_g n_g M_g(a)

    with dense widths ``W``, ``n_g`` the channels that group ``g`` loses and ``M_g(a)`` the entries of axis ``a``
    that one of its channels owns. Integers in, exact integers out.

    Args:
        graph: the graph at its present widths; only read, and not kept.

    Attributes:
        groups: the group names, in the order of the graph and of every ``(G,)`` array.
        sizes: shape ``(G,)``, int64: channels per group now.
        now: the cost at the present widths.
        dense: the cost when the model was traced.

    Example:
        >>> from lightning_taylor.graph.types import ChannelGroup, Operation, Role, Slice
        >>> rows = torch.arange(8)[:, None]
        >>> made = Slice("a.weight", 0, rows, Role.PRODUCER)
        >>> read = Slice("b.weight", 1, rows, Role.CONSUMER)
        >>> a = ChannelGroup("a", (made, read))
        >>> shapes = {"a.weight": (8, 3), "b.weight": (2, 8)}
        >>> operations = (
        ...     Operation("a", "mm", 48, (("a.weight", 0), ("a.weight", 1))),
        ...     Operation("b", "mm", 32, (("b.weight", 0), ("b.weight", 1))),
        ... )
        >>> graph = ChannelGraph({"a": a}, {}, {}, shapes, shapes, frozenset(shapes), operations)
        >>> model = CostModel(graph)
        >>> model.dense
        Cost(flops=80, params=40, channels=8)
        >>> model.at({"a": 4})
        Cost(flops=40, params=20, channels=4)
        >>> model.saved_per_channel("flops"), model.saved_per_channel("params")
        ({'a': 10.0}, {'a': 5.0})
    """

    def __init__(self, graph: ChannelGraph) -> None:
        spans = _spans(graph)
        widths = _Widths(graph, spans)
        self.groups = tuple(graph.groups)
        self.sizes = np.array([group.size for group in graph.groups.values()], dtype=np.int64)
        self._position = {name: g for g, name in enumerate(self.groups)}
        self._flops = _SumOfProducts(
            (op.flops / math.prod(graph.dense[tensor][dim] for tensor, dim in op.axes), *widths.factors(op.axes))
            for op in graph.operations
        )
        self._params = _SumOfProducts(
            (1.0, *widths.factors((name, dim) for dim in range(len(graph.shapes[name]))))
            for name in sorted(graph.parameters)
        )
        self._now_A, self._span_GA = widths.arrays(len(self.groups))
        self.now = self.at_counts(np.zeros_like(self.sizes))
        self.dense = Cost(
            flops=sum(op.flops for op in graph.operations),
            params=sum(math.prod(graph.dense[name]) for name in graph.parameters),
            channels=sum(graph.dense_sizes.values()),
        )

    def at(self, removed: Mapping[str, int]) -> Cost:
        """The cost after each named group has lost so many of its present channels.

        Args:
            removed: group name -> number of channels, 0 to the group's size.

        Raises:
            ValueError: for an unknown group or a number outside its range.
        """
        return self.at_counts(self.counts(removed))

    def after(self, removed: Mapping[str, int]) -> CostModel:
        """The model of the smaller graph, which has the same sums of products; what ``at`` takes and raises."""
        removed_G, smaller = self.counts(removed), copy(self)
        smaller.sizes, smaller.now = self.sizes - removed_G, self.at_counts(removed_G)
        smaller._now_A = self._widths(removed_G[None])[0]
        return smaller

    def at_counts(self, removed_G: NDArray[np.int64]) -> Cost:
        """The same for shape ``(G,)``, in the order of ``groups``, unchecked: the inner loop of the selection."""
        width_BA = self._widths(removed_G[None])
        return Cost(
            flops=round(float(self._flops(width_BA)[0])),
            params=round(float(self._params(width_BA)[0])),
            channels=int(self.sizes.sum() - removed_G.sum()),
        )

    def fractions_at(self, removed_NG: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """What would be left of the dense model after many removals at once, unchecked: resource -> shape ``(N,)``."""
        width_NA, dense = self._widths(removed_NG), self.dense
        return {
            "flops": np.round(self._flops(width_NA)) / max(1, dense.flops),
            "params": np.round(self._params(width_NA)) / max(1, dense.params),
            "channels": (self.sizes.sum() - removed_NG.sum(1)) / max(1, dense.channels),
        }

    def saved_per_channel(self, resource: str) -> dict[str, float]:
        """What removing one more channel of each group saves at the present widths, exactly.

        Args:
            resource: "flops" (per example), "params" (entries) or "channels" (always 1).

        Raises:
            ValueError: for another resource.
        """
        one_GG = np.eye(len(self.groups), dtype=np.int64)
        if resource == "channels":
            return dict.fromkeys(self.groups, 1.0)
        if resource not in ("flops", "params"):
            raise ValueError(f"{resource!r} does not follow from the widths; choose flops, params or channels")
        left_G = (self._flops if resource == "flops" else self._params)(self._widths(one_GG))
        return {name: getattr(self.now, resource) - float(left_G[g]) for g, name in enumerate(self.groups)}

    def counts(self, removed: Mapping[str, int]) -> NDArray[np.int64]:
        """The same numbers as shape ``(G,)``, in the order of ``groups``; what ``at`` takes and raises."""
        removed_G = np.zeros_like(self.sizes)
        for name, count in removed.items():
            if name not in self._position:
                raise ValueError(f"no channel group {name!r}; this graph has {len(self.groups)}: {self.groups[:8]}")
            g = self._position[name]
            if not 0 <= count <= self.sizes[g]:
                raise ValueError(f"group {name!r} has {self.sizes[g]} channels and cannot lose {count}")
            removed_G[g] = count
        return removed_G

    def _widths(self, removed_BG: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._now_A - removed_BG.astype(np.float64) @ self._span_GA


class _Widths:
    """Gives every width that can change a position; axes that always have equal widths share one."""

    def __init__(self, graph: ChannelGraph, spans: _Spans) -> None:
        self._graph = graph
        self._spans = spans
        self._profiles: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {(1, ()): _ONE}

    def factors(self, axes: Iterable[Axis]) -> tuple[float, list[int]]:
        """The product of the axes' widths as a constant and the positions of the widths that can change."""
        constant, positions = 1.0, []
        for axis in axes:
            if axis in self._spans:
                profile = self._graph.width(axis), tuple(self._spans[axis].items())
                positions.append(self._profiles.setdefault(profile, len(self._profiles)))
            else:
                constant *= self._graph.width(axis)
        return constant, positions

    def arrays(self, groups: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The widths now, shape ``(A,)``, and what each loses per channel of each group, shape ``(G, A)``."""
        now_A = np.array([width for width, _ in self._profiles], dtype=np.float64)
        span_GA = np.zeros((groups, len(now_A)))
        for (_, owners), position in self._profiles.items():
            for g, entries in owners:
                span_GA[g, position] = entries
        return now_A, span_GA


class _SumOfProducts:
    """``sum_k c_k prod_j w[k_j]``, for many ``w`` at once; terms with the same factors are added up beforehand."""

    def __init__(self, terms: Iterable[tuple[float, float, list[int]]]) -> None:
        merged: dict[tuple[int, ...], float] = defaultdict(float)
        for scale, constant, positions in terms:
            merged[tuple(sorted(positions))] += scale * constant
        self._coefficient_K = np.array(list(merged.values()))
        self._position_JK = np.full((max(map(len, merged), default=0), len(merged)), _ONE)
        for k, positions in enumerate(merged):
            self._position_JK[: len(positions), k] = positions

    def __call__(self, width_BA: NDArray[np.float64]) -> NDArray[np.float64]:
        product_BK = np.ones((len(width_BA), len(self._coefficient_K)))
        for position_K in self._position_JK:
            product_BK *= width_BA[:, position_K]
        return product_BK @ self._coefficient_K


def _spans(graph: ChannelGraph) -> _Spans:
    """For every axis that costs something: group -> the entries of the axis that one channel of it owns."""
    costly = set(graph.parameters).union(tensor for op in graph.operations for tensor, _ in op.axes)
    found: dict[tuple[Axis, int], list[torch.Tensor]] = defaultdict(list)
    for g, group in enumerate(graph.groups.values()):
        for s in group.slices:
            if s.tensor in costly:
                found[s.axis, g].append(s.index)
    spans: _Spans = defaultdict(dict)
    for (axis, g), slices in found.items():
        # One axis can be listed under two roles; its entries still go only once.
        spans[axis][g] = slices[0].shape[1] if len(slices) == 1 else _entries_per_channel(slices)
    return dict(spans)


def _entries_per_channel(slices: list[torch.Tensor]) -> int:
    return torch.cat(slices, dim=1).unique().numel() // slices[0].shape[0]
