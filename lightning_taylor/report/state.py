"""What a checkpoint holds of a pruning, and how it is read, also as earlier releases wrote it.

It lies here, and not in ``fit``, since commands read it that do not wait for Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, final

from lightning_taylor.checkpoint.version_1 import state_of_version_1
from lightning_taylor.checkpoint.widths import Widths
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.pace import Pace
from lightning_taylor.plan.record import Record
from lightning_taylor.plan.target import Target
from lightning_taylor.report.commands import config_beside
from lightning_taylor.report.notes import ReportNotes
from lightning_taylor.report.summary import PruningSummary
from lightning_taylor.surgery.snapshot import Snapshot
from lightning_taylor.utilities.plain import from_plain

__all__ = ["VERSION", "GuardState", "LastGood", "PruningState", "check_version", "read_state"]

VERSION = 2


@final
@dataclass(frozen=True, eq=False)
class LastGood:
    """The last size that a guard found good enough, to go back to.

    Attributes:
        graph: the channels.
        record: the events until then.
        snapshot: the values.
    """

    graph: ChannelGraph
    record: Record
    snapshot: Snapshot


@final
@dataclass(frozen=True, eq=False)
class GuardState:
    """A guard between two validations.

    Attributes:
        dense: the monitored metric of the dense model; None if nobody knows.
        held: whether events are held back.
        ended: whether nothing more is removed in this fit.
        good: what to go back to; None for nothing, or if nobody wants to.
    """

    dense: float | None
    held: bool
    ended: bool
    good: LastGood | None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PruningState:
    """The state of ``TaylorPruning`` in a checkpoint. Fields with defaults are missing in some that are read.

    Attributes:
        version: of this format.
        graph: the channels at the present widths; None before the first training batch.
        record: the events from the dense model to these widths; None without a graph.
        criterion: ``repr`` of what gathered the scores.
        scores: the scorer's state since the last event.
        step: optimizer steps of the fit so far.
        pending: the step of the event that is due, or has to wait; None if there is none.
        length: optimizer steps of the whole fit; infinite if nobody knows, None before its schedule is laid.
        epoch_length: optimizer steps of an epoch; None and infinite as for ``length``.
        pace: of the steps in manual optimization; None in automatic, and before the first.
        report: what the report was told.
        asked: resource -> the fraction of the dense model that may remain; empty if the release did not say.
        model: import path of the LightningModule's class; empty for one of a script.
        guard: None if there is no guard.
        widths: what the metadata of the state dict says as well; for those who rebuild the state dict.
        settings: name -> ``repr`` of every argument of the callback that a second fit should not change.
        lowered_to: the multiple of channels that the device's own was lowered to, as the target could not be met with
            it; None if it could.
    """

    version: int = VERSION
    graph: ChannelGraph | None
    record: Record | None
    criterion: str
    scores: Mapping[str, Any]
    step: int
    pending: int | None
    length: float | None
    epoch_length: float | None = None
    pace: Pace | None = None
    report: ReportNotes
    asked: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    guard: GuardState | None = None
    widths: Widths = field(default_factory=lambda: Widths({}, {}))
    settings: Mapping[str, Any] = field(default_factory=dict)
    lowered_to: int | None = None

    def __post_init__(self) -> None:
        if (self.graph is None) != (self.record is None):
            raise ValueError("a graph goes with a record")

    @property
    def pruned(self) -> tuple[ChannelGraph, Record] | None:
        """The graph and the record; None before the first training batch."""
        return (self.graph, self.record) if self.graph and self.record else None

    @property
    def fit_length(self) -> FitLength | None:
        """The length of the fit, as far as it is known; None before its schedule is laid."""
        if self.length is None:
            return None
        return FitLength(self.length, inf if self.epoch_length is None else self.epoch_length)

    def summary(self, checkpoint: str) -> PruningSummary:
        """Summarise the pruning; nothing was measured then.

        Args:
            checkpoint: the file that holds the state.
        """
        assert self.graph is not None
        assert self.record is not None
        target = Target(**self.asked) if self.asked else None
        where = {"checkpoint": checkpoint, "config": config_beside(checkpoint)}
        return self.report.summary(self.graph, target, self.record, **where, model=self.model)


def check_version(plain: Any) -> None:
    """Raise ValueError for the state of a release that this one does not know."""
    version = plain.get("version") if isinstance(plain, Mapping) else None
    if version not in (1, VERSION):
        raise ValueError(
            f"the checkpoint's pruning state has version {version!r}, this release reads {VERSION}: "
            "resume with the release that wrote it"
        )


def read_state(plain: Any) -> PruningState:
    """Read what ``to_plain`` wrote of a state, in this release or an earlier one.

    Raises:
        ValueError: for a version that this release does not know.
        KeyError, TypeError, AttributeError, ValueError: if it is damaged.
    """
    check_version(plain)
    state = state_of_version_1(plain) if plain["version"] == 1 else plain
    known = {f.name for f in fields(PruningState)}
    # A subclass of the callback may have added to it.
    return from_plain(PruningState, {name: value for name, value in state.items() if name in known})
