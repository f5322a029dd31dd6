"""What a rule of a criterion is, and what it is given.

A rule is a function of a ``Case`` that says in words what is broken, with the value and the way out, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.conformance.bench import Batch, Bench, batches, bench, difference, score

__all__ = [
    "Case",
    "Rule",
]


@dataclass
class Case:
    """A criterion under test, and the scores that several rules compare with."""

    criterion: Criterion

    @property
    def bench(self) -> Bench:
        """The network that is scored."""
        return bench()

    @property
    def first(self) -> Batch:
        """The first batch."""
        return batches()[0]

    @property
    def second(self) -> Batch:
        """The second batch."""
        return batches()[1]

    @cached_property
    def after_first(self) -> dict[str, Tensor]:
        """Scores after the first batch."""
        return score(self.criterion, self.bench, [self.first])

    @cached_property
    def after_second(self) -> dict[str, Tensor]:
        """Scores after the second batch alone."""
        return score(self.criterion, self.bench, [self.second])

    @cached_property
    def after_both(self) -> dict[str, Tensor]:
        """Scores after both batches."""
        return score(self.criterion, self.bench, [self.first, self.second])

    @cached_property
    def draws(self) -> bool:
        """Whether chance has a part in the scores: they differ between events, and so between channels."""
        other = score(self.criterion, self.bench, [self.first, self.second], event=1)
        return difference(self.after_both, other) is not None


Rule = Callable[[Case], str | None]
