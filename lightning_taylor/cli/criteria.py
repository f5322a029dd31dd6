"""What ``compare`` compares: the criteria of the study, and the one that a configuration prunes with."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lightning_taylor.cli.exit import fail, listed, nearest
from lightning_taylor.criteria.base import Criterion
from lightning_taylor.fit.callback import TaylorPruning
from lightning_taylor.study.score_batches import every_criterion

__all__ = ["WITH_FLOPS", "check_criteria", "known_criteria", "own_criterion"]

WITH_FLOPS = "Taylor+FLOPs"
"""The name of the criterion that counts what a channel costs, with the penalty of the command line."""


def known_criteria(pruning: TaylorPruning | None, *, seed: int = 0) -> dict[str, Criterion]:
    """Every criterion by its name in the tables.

    Args:
        pruning: a configuration's own, whose criterion is among them.
        seed: of what is random.
    """
    known = every_criterion(seed=seed)
    return known if pruning is None else {**known, own_criterion(pruning): pruning.options.criterion}


def own_criterion(pruning: TaylorPruning) -> str:
    """The name of the criterion that it prunes with: the table's, or else the criterion with its settings.

    Example:
        >>> from lightning_taylor import TaylorBatch
        >>> own_criterion(TaylorPruning()), own_criterion(TaylorPruning(criterion=TaylorBatch(momentum=0.9)))
        ('TaylorBatch', 'TaylorBatch(momentum=0.9)')
    """
    own = repr(pruning.options.criterion)
    return next((name for name, criterion in every_criterion().items() if repr(criterion) == own), own)


def check_criteria(asked: Iterable[str], known: Collection[str]) -> None:
    """End the command if a name of ``--criteria`` is none of them."""
    for name in asked:
        if name not in known:
            said = nearest(name, known).partition("; there are ")[0]
            fail(2, f"--criteria: no criterion {name!r}{said}; there are {listed(known)}")
