"""Hand-made graphs, and costs worked out from shapes alone with exact fractions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import prod

import pytest
import torch

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import ChannelGroup, Operation, Role, Slice
from lightning_taylor.plan.cost import Cost


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., ChannelGraph]:
    """Builds a chain of layers ``l0, l1, ...`` of the given widths, all of which a last layer reads side by side."""
    return _make_graph


@pytest.fixture(scope="session")
def plain_cost() -> Callable[[ChannelGraph], Cost]:
    """The cost of a graph at its present widths: a slow, plainly right twin of ``CostModel``."""
    return _plain_cost


def _make_graph(sizes: Sequence[int], spans: Sequence[int] | None = None, work: Sequence[int] | None = None):
    spans, work = spans or [1] * len(sizes), work or [1] * len(sizes)
    total = sum(size * span for size, span in zip(sizes, spans, strict=True))
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (3, total)}
    groups, operations, offset = {}, [], 0
    for g, (size, span) in enumerate(zip(sizes, spans, strict=True)):
        name = f"l{g}"
        shapes[f"{name}.weight"] = (size, 3 if g == 0 else sizes[g - 1])
        shapes[f"{name}.bias"] = shapes[f"{name}.running_mean"] = (size,)
        rows = torch.arange(size)[:, None]
        slices = [
            Slice(f"{name}.weight", 0, rows, Role.PRODUCER),
            Slice(f"{name}.bias", 0, rows, Role.PRODUCER),
            # The same entries under a second role: they still go only once.
            Slice(f"{name}.bias", 0, rows, Role.PASS_THROUGH),
            Slice(f"{name}.running_mean", 0, rows, Role.PASS_THROUGH),
            Slice("head.weight", 1, offset + torch.arange(size * span).reshape(size, span), Role.CONSUMER),
        ]
        if g + 1 < len(sizes):
            slices.append(Slice(f"l{g + 1}.weight", 1, rows, Role.CONSUMER))
        groups[name] = ChannelGroup(name, tuple(slices))
        operations.append(_matmul(name, shapes, work[g]))
        offset += size * span
    operations.append(_matmul("head", shapes, 1))
    return ChannelGraph(
        groups=groups,
        frozen={"head": "reaches the output"},
        layers={name: (f"{name}.weight", 0) for name in [*groups, "head"]},
        shapes=shapes,
        dense=shapes,
        parameters=frozenset(name for name in shapes if "running" not in name),
        operations=tuple(operations),
    )


def _matmul(layer: str, shapes: Mapping[str, tuple[int, ...]], positions: int) -> Operation:
    weight = f"{layer}.weight"
    return Operation(layer, "mm", 2 * positions * prod(shapes[weight]), ((weight, 0), (weight, 1)))


def _plain_cost(graph: ChannelGraph) -> Cost:
    flops = sum(
        op.flops * prod((Fraction(graph.shapes[t][d], graph.dense[t][d]) for t, d in op.axes), start=Fraction(1))
        for op in graph.operations
    )
    assert flops.denominator == 1
    params = sum(prod(graph.shapes[name]) for name in graph.parameters)
    return Cost(int(flops), params, sum(group.size for group in graph.groups.values()))
