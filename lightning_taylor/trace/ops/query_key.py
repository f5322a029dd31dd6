"""What the rules for products of two activations share: whether the coordinates that are summed over may go.

Shape legend: as the tensors that the labels describe.
"""

from __future__ import annotations

from torch import Tensor

from lightning_taylor.graph.types import Role
from lightning_taylor.modules.attention import HEAD_WIDTH, SCALED_BY
from lightning_taylor.modules.attention_registry import projection_of
from lightning_taylor.trace.grid_labels import entries_of
from lightning_taylor.trace.labels import Labels
from lightning_taylor.trace.state import Call

__all__ = [
    "contracted",
    "keeps_scale",
]


def contracted(call: Call, sides: list[tuple[Labels, Tensor]]) -> bool:
    """Note that the coordinates of two activations are multiplied, if the user lets heads lose some of theirs.

    Args:
        call: the product.
        sides: what each carries, and its labels along the coordinates.

    Returns:
        Whether they may go; not if the layers that make them cannot be told.
    """
    partition = call.state.partition
    if partition.options.attention_heads != "spread":
        return False
    made = [entries_of(call, x.slots) for x, _ in sides]
    if any(labels is None or not partition.are_real(labels) for labels in made):
        return False
    for role, labels, (_, inner) in zip((Role.QUERY, Role.KEY), made, sides, strict=True):
        assert labels is not None
        call.state.pairs.note(role, inner, labels)
        partition.assign(labels, role)
        _note_width(call, inner)
    return True


def keeps_scale(call: Call) -> bool:
    """Whether fused attention multiplies by a number of its caller's, or in a module whose scale our class keeps."""
    running = call.state.running
    return call.get("scale") is not None or (running is not None and projection_of(running) is not None)


def _note_width(call: Call, inner: Tensor) -> None:
    """Classes of ours have to be told how wide heads are: of some, no tensor says it."""
    running, first = call.state.running, int(inner.flatten()[0])
    grid = call.state.grids.owning(first)
    if grid is None or running is None or projection_of(running) is None:
        return
    dim = next(d for d, axis in enumerate(grid.axes) if axis is not None and axis[0] <= first <= axis[-1])
    width = grid.labels.shape[dim]
    grid.size_attributes[call.state.module, HEAD_WIDTH, (dim,)] = width
    grid.size_attributes[call.state.module, SCALED_BY, (dim,)] = vars(running).get(SCALED_BY) or width
