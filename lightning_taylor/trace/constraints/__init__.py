"""What decides about labels beyond ties: five constraints, each a file; a partition asks them by ``Constraint``."""

from __future__ import annotations

from typing import NamedTuple

from lightning_taylor.trace.constraints.attribute_sizes import SplitSites
from lightning_taylor.trace.constraints.grids import Grids
from lightning_taylor.trace.constraints.norm_statistics import NormStatistics
from lightning_taylor.trace.constraints.query_key import QueryKeyPairs
from lightning_taylor.trace.constraints.told_widths import ToldWidths
from lightning_taylor.trace.partition import LabelPartition

__all__ = [
    "Constraints",
    "attach_constraints",
]


class Constraints(NamedTuple):
    """The constraints of one trace, in the order in which they settle."""

    pairs: QueryKeyPairs
    grids: Grids
    splits: SplitSites
    statistics: NormStatistics
    told: ToldWidths


def attach_constraints(partition: LabelPartition) -> Constraints:
    """Make the constraints of a new partition, which asks them from here on."""
    pairs = QueryKeyPairs(partition)
    others = SplitSites(partition), NormStatistics(partition), ToldWidths(partition)
    constraints = Constraints(pairs, Grids(partition, pairs), *others)
    partition.constraints = constraints
    return constraints
