"""What a trace has learnt of products of two activations: which labels are multiplied with each other and summed over.

Shape legend: as the tensors that the labels describe.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.types import Role
from lightning_taylor.trace.distinct import distinct
from lightning_taylor.trace.partition import Constraint, LabelPartition

__all__ = ["QueryKeyPairs"]


class QueryKeyPairs(Constraint):
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
        self._open.append((distinct(labels[labels >= 0].numpy()), reason))

    def settle(self) -> None:
        """Freeze them, when all is known."""
        for labels, reason in self._open:
            self._partition.freeze(torch.from_numpy(labels[~self.are(labels)]), reason)

    def are(self, labels: np.ndarray) -> np.ndarray:
        """Return which of these labels are coordinates that are contracted."""
        return np.isin(labels, _joined(self._coordinates))

    def components(self, component: np.ndarray) -> np.ndarray:
        """Return the components of those."""
        return distinct(component[_joined(self._coordinates)])

    def silenced(self, role: Role) -> np.ndarray:
        """Return the entries that have to be zero for one side to be zero: of kernels, and of what is added to it."""
        made = distinct(_joined(self._made[role]))
        beside = self._partition.tied_with(made)
        number, _ = self._partition.decode(beside)
        vectors = np.array(
            [len(self._partition.shapes.get(name, ())) == 1 for name, _ in self._partition.axes], dtype=bool
        )
        return np.union1d(made, beside[vectors[number]])


def _joined(labels: list[Tensor]) -> np.ndarray:
    return torch.cat(labels).numpy() if labels else np.zeros(0, dtype=np.int64)
