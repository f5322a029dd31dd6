"""Two activations that are multiplied and summed over: the queries and the keys of an attention.

A coordinate that is zero on either side adds nothing to any product. So it can go, if it goes from both sides and from
every head alike, and as long as what scales the products does not follow the width. There is no weight that reads it:
that nothing does is said by zeros in the layers that make it, whose roles are ``QUERY`` and ``KEY``.

The road not taken: queries as the channels and the layer of the keys as what reads them, which is as true the other way
round.
"""

from __future__ import annotations

from torch import Tensor

from lightning_taylor.graph.labels import Labels
from lightning_taylor.graph.slots import entries_of
from lightning_taylor.graph.tracer import Call
from lightning_taylor.graph.types import Role
from lightning_taylor.modules.attention import HEAD_WIDTH, SCALED_BY
from lightning_taylor.modules.attention_registry import projection_of

__all__ = ["contracted", "keeps_scale"]


def contracted(call: Call, sides: list[tuple[Labels, Tensor]]) -> bool:
    """Note that the coordinates of two activations are multiplied, if the user lets heads lose some of theirs.

    Args:
        call: the product.
        sides: what each carries, and its labels along the coordinates.

    Returns:
        Whether they may go; not if the layers that make them cannot be told.
    """
    ledger = call.tracer.ledger
    if ledger.choices.attention_heads != "spread":
        return False
    made = [entries_of(call, x.slots) for x, _ in sides]
    if any(labels is None or not ledger.are_real(labels) for labels in made):
        return False
    for role, labels, (_, inner) in zip((Role.QUERY, Role.KEY), made, sides, strict=True):
        assert labels is not None
        ledger.contracted.note(role, inner, labels)
        ledger.assign(labels, role)
        _note_width(call, inner)
    return True


def keeps_scale(call: Call) -> bool:
    """Whether fused attention multiplies by a number of its caller's, or in a module whose scale our class keeps."""
    running = call.tracer.running
    return call.get("scale") is not None or (running is not None and projection_of(running) is not None)


def _note_width(call: Call, inner: Tensor) -> None:
    """Classes of ours have to be told how wide heads are: of some, no tensor says it."""
    running, first = call.tracer.running, int(inner.flatten()[0])
    grid = call.tracer.ledger.grids.owning(first)
    if grid is None or running is None or projection_of(running) is None:
        return
    dim = next(d for d, axis in enumerate(grid.axes) if axis is not None and axis[0] <= first <= axis[-1])
    width = grid.labels.shape[dim]
    grid.holders[call.tracer.module, HEAD_WIDTH, (dim,)] = width
    grid.holders[call.tracer.module, SCALED_BY, (dim,)] = vars(running).get(SCALED_BY) or width
