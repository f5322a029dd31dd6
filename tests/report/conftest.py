from __future__ import annotations

import pytest
import torch

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import ChannelGroup, Operation, Role, Slice
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.record import Event, Record
from lightning_taylor.plan.target import Target
from lightning_taylor.report.summary import PruningSummary


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> None:
    """Draw everything here."""


@pytest.fixture
def dense() -> ChannelGraph:
    """Two layers, the first with eight removable channels."""
    rows = torch.arange(8)[:, None]
    made, read = Slice("first.weight", 0, rows, Role.PRODUCER), Slice("second.weight", 1, rows, Role.CONSUMER)
    shapes = {"first.weight": (8, 3), "second.weight": (2, 8)}
    return ChannelGraph(
        groups={"first": ChannelGroup("first", (made, read))},
        frozen={"second": "reaches the output [logits]"},
        layers={"first": ("first.weight", 0), "second": ("second.weight", 0)},
        shapes=shapes,
        dense=shapes,
        parameters=frozenset(shapes),
        operations=tuple(
            Operation(name.split(".")[0], "mm", 2 * a * b, ((name, 0), (name, 1))) for name, (a, b) in shapes.items()
        ),
    )


@pytest.fixture
def summary(dense) -> PruningSummary:
    """Six of the eight channels gone in one event."""
    graph = dense.shrink({"first": range(6)})
    cost = CostModel(graph).now
    event = Event(5, {"first": list(range(6))}, cost.flops, cost.params, cost.channels, seconds=0.5)
    return PruningSummary.of(
        graph,
        Target(flops=0.5),
        record=Record([event]),
        metrics_before={"val_acc": 0.9, "only_before": 1.0},
        metrics_after={"val_acc": 0.875, "only_after": 1.0},
    )
