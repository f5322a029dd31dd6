"""What would help where a network has nothing to remove, or not enough: options of the trace, each of them tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning_taylor.errors import PruningError
from lightning_taylor.fit.options import Options
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.feasibility import reachable_minimum
from lightning_taylor.trace.freeing import options_that_may_free
from lightning_taylor.trace.options import TraceOptions

__all__ = ["with_way_out"]

_NAMES = 3


def with_way_out(
    error: PruningError,
    graph: ChannelGraph,
    options: Options,
    chosen: TraceOptions,
    retrace: Callable[[TraceOptions], ChannelGraph],
) -> PruningError:
    """Return the same error, with the options of the trace that would free more, as another trace with each shows.

    Args:
        error: says that too few channels can be removed.
        graph: what was traced.
        options: what to reach, and the limits of every width.
        chosen: the options of that trace.
        retrace: traces with others.
    """
    before = _least(graph, options)
    said: list[str] = []
    for name, value in options_that_may_free(graph.frozen.values()):
        changed: Any = {name: value}
        if getattr(chosen, name) == value:
            continue
        try:
            freer = retrace(replace(chosen, **changed))
        except PruningError:
            continue
        after = _least(freer, options)
        if any(after[resource] < before[resource] for resource in before):
            down = ", ".join(f"{resource}={fraction:.3g}" for resource, fraction in after.items())
            said.append(f"{name}={value!r} frees {_names(graph, freer)}, and allows {down}")
    return type(error)(f"{error}. What would help: {'; '.join(said)}") if said else error


def _least(graph: ChannelGraph, options: Options) -> dict[str, float]:
    """Map the resources that are asked for to the smallest fractions that can be reached; FLOPs if only others are."""
    least = reachable_minimum(graph, limits=options.limits(graph))
    dense, exact = CostModel(graph).dense, options.target.exact
    return {name: getattr(least, name) / max(1, getattr(dense, name)) for name in (exact.asked if exact else ["flops"])}


def _names(graph: ChannelGraph, freer: ChannelGraph) -> str:
    """Name a few of the layers that lose channels only in the freer graph."""
    before, after = graph.slices_by_axis(), freer.slices_by_axis()
    freed = [layer for layer, axis in freer.layers.items() if axis in after and axis not in before]
    if not freed:
        return "more channels"
    more = f" and {len(freed) - _NAMES} more" if len(freed) > _NAMES else ""
    return f"{', '.join(freed[:_NAMES])}{more}"
