"""A guard at work: the dense model's metric, whether events are held back, and what to go back to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from torch.optim import Optimizer

from lightning_taylor.fit.pruner import Pruner
from lightning_taylor.plan.guard import Guard
from lightning_taylor.plan.record import Record
from lightning_taylor.report.state import GuardState, LastGood
from lightning_taylor.surgery.mirrors import Copy
from lightning_taylor.surgery.snapshot import Snapshot

__all__ = ["GuardWatch"]


@final
class GuardWatch:
    """Compares each validation with the dense model's, and says whether events may go on.

    Args:
        guard: the user's settings.
        dense: the metric of the dense model, where the user knows it; else that of the last validation before the first
            event.
    """

    def __init__(self, guard: Guard, dense: float | None = None) -> None:
        self.guard = guard
        self.dense = dense
        self._is_given = dense is not None
        self.held = False
        self.ended = False
        self._good: LastGood | None = None
        self._told = False

    def validated(
        self, metrics: Mapping[str, float], pruner: Pruner, optimizers: Iterable[Optimizer], copies: Iterable[Copy]
    ) -> str | None:
        """Take in a validation's metrics; go back if the guard says so.

        Args:
            metrics: name -> value, the same on every rank.
            pruner: whose model was validated.
            optimizers: all that hold parameters of the model.
            copies: what mirrors the model.

        Returns:
            What changed, in words; None if nothing did.

        Raises:
            ValueError: if the monitored metric is not among them.
        """
        if self.ended:
            return None
        if self.guard.monitor not in metrics:
            known = ", ".join(sorted(metrics)) or "none"
            raise ValueError(
                f"Guard(monitor={self.guard.monitor!r}) finds no such metric after the validation; there are {known}"
            )
        value = metrics[self.guard.monitor]
        if not pruner.record.events and not self._is_given:
            self.dense = value
        elif self.dense is None:
            told, self._told = self._told, True
            said = f"{self.guard!r} holds nothing back: there was no validation before the first event to compare with"
            return None if told else said
        was, self.held = self.held, self.dense is not None and self.guard.holds(self.dense, value)
        if not self.held:
            self._keep(pruner, optimizers, copies)
            # A network that was good enough at the target is what was asked for; what becomes of it is not pruning.
            self.ended = pruner.done
            return f"{self._figures(value)}: pruning goes on" if was else None
        if self.guard.action == "pause":
            return None if was else f"{self._figures(value)}: events wait until it recovers"
        self.ended = True
        if self.guard.action == "stop" or self._good is None:
            return f"{self._figures(value)}: nothing more is removed"
        self._go_back(pruner, optimizers, copies)
        return (
            f"{self._figures(value)}: went back to the last good size ({pruner.fractions()['flops']:.1%} of the FLOPs)"
        )

    @property
    def allows(self) -> bool:
        """Whether events may happen now."""
        return not (self.held or self.ended)

    @property
    def state(self) -> GuardState:
        """What a resumed fit needs."""
        return GuardState(self.dense, self.held, self.ended, self._good)

    def load(self, state: GuardState) -> None:
        """Go on from the state of a checkpoint; the user's own value of the dense model is kept."""
        self.dense = self.dense if self._is_given else state.dense
        self.held, self.ended, self._good = state.held, state.ended, state.good

    def _keep(self, pruner: Pruner, optimizers: Iterable[Optimizer], copies: Iterable[Copy]) -> None:
        self._good = None
        if self.guard.action == "rollback" and not pruner.done:
            record = Record(list(pruner.record.events))  # which goes on
            self._good = LastGood(pruner.graph, record, Snapshot.take(pruner.model, optimizers, copies))

    def _go_back(self, pruner: Pruner, optimizers: Iterable[Optimizer], copies: Iterable[Copy]) -> None:
        good, self._good = self._good, None
        assert good is not None
        good.snapshot.restore(pruner.model, optimizers, copies, pruner.graph.followers)
        pruner.reset(good.graph, good.record)

    def _figures(self, value: float) -> str:
        return f"{self.guard.monitor} is {value:.4g}, {self.dense:.4g} when dense (max_drop={self.guard.max_drop:g})"
