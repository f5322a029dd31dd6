"""What a trace has learnt of products of two activations: which labels are multiplied with each other and summed over.

Shape legend: as the tensors that the labels describe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.types import Role
from lightning_taylor.modules.attention import HEAD_WIDTH, SCALED_BY
from lightning_taylor.modules.attention_registry import projection_of
from lightning_taylor.trace.grid_labels import entries_of
from lightning_taylor.trace.labels import Labels
from lightning_taylor.trace.state import Call

if TYPE_CHECKING:
    from lightning_taylor.trace.partition import LabelPartition

__all__ = [
    "QueryKeyPairs",
    "contracted",
    "keeps_scale",
]


class QueryKeyPairs:
    """The coordinates that are contracted, and the entries of the layers that make them, as queries or as keys."""

    def __init__(self, partition: LabelPartition) -> None:
        self._partition = partition
        self._coordinates: list[Tensor] = []
        self._made: dict[Role, list[Tensor]] = {Role.QUERY: [], Role.KEY: []}
        self._open: list[tuple[np.ndarray, str]] = []

    def note(self, role: Role, coordinates: Tensor, made: Tensor) -> None:
        """These coordinates are multiplied with those that they are tied to; these entries make them."""
        self._coordinates.append(coordinates.flatten())
        self._made[role].append(made.flatten())

    def freeze_unless(self, labels: Tensor, reason: str) -> None:
        """Freeze what is not contracted in the end: of what is, a zero adds nothing to a sum of squares either."""
        self._open.append((np.unique(labels[labels >= 0].numpy()), reason))

    def settle(self) -> None:
        """Freeze them, when all is known."""
        for labels, reason in self._open:
            self._partition.freeze(torch.from_numpy(labels[~self.are(labels)]), reason)

    def are(self, labels: np.ndarray) -> np.ndarray:
        """Which of these labels are coordinates that are contracted."""
        return np.isin(labels, _joined(self._coordinates))

    def components(self, component: np.ndarray) -> np.ndarray:
        """The components of those."""
        return np.unique(component[_joined(self._coordinates)])

    def silenced(self, role: Role) -> np.ndarray:
        """The entries that have to be zero for one side to be zero: of kernels, and of what is added to it."""
        made = np.unique(_joined(self._made[role]))
        beside = self._partition.tied_with(made)
        number, _ = self._partition.decode(beside)
        vectors = np.array(
            [len(self._partition.shapes.get(name, ())) == 1 for name, _ in self._partition.axes], dtype=bool
        )
        return np.union1d(made, beside[vectors[number]])


def _joined(labels: list[Tensor]) -> np.ndarray:
    return torch.cat(labels).numpy() if labels else np.zeros(0, dtype=np.int64)


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
        partition.contracted.note(role, inner, labels)
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
    grid = call.state.partition.grids.owning(first)
    if grid is None or running is None or projection_of(running) is None:
        return
    dim = next(d for d, axis in enumerate(grid.axes) if axis is not None and axis[0] <= first <= axis[-1])
    width = grid.labels.shape[dim]
    grid.holders[call.state.module, HEAD_WIDTH, (dim,)] = width
    grid.holders[call.state.module, SCALED_BY, (dim,)] = vars(running).get(SCALED_BY) or width
