"""What is said while a fit runs: a line about the trace, and one at each event, at INFO on rank zero."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from lightning_taylor.fit.live_bars import above_bars
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.report.event import PruningEvent

__all__ = ["News"]

NAME = "TaylorPruning"
_LONG = 100  # parameter tensors of a module from which on its trace takes more than a few seconds
_NAMED = 3  # layers in a line
_REASON = 60  # characters of a reason in a line


@final
class News:
    """The lines of one callback.

    Args:
        verbose: whether anything is said.
    """

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose

    def trace(self, module: LightningModule, make: Callable[[], ChannelGraph]) -> ChannelGraph:
        """Say that a trace begins, if it may take long, what it found, and why it did not follow the training step.

        Args:
            module: what is traced.
            make: traces it.
        """
        name, began = type(module).__name__, time.perf_counter()
        tensors = sum(1 for _ in module.parameters())
        if tensors >= _LONG:
            self._say(f"looks for the channels of {name} ({tensors} parameter tensors), which can take a minute")
        graph = make()
        channels = sum(group.size for group in graph.groups.values())
        can_go = f"{channels:,} channels in {len(graph.groups)} groups can go"
        self._say(f"traced {name} in {time.perf_counter() - began:.1f} s: {can_go}{_what_stays(graph)}")
        if graph.step_failure:
            self._say(
                f"the training step of {name} does not run on a copy ({graph.step_failure}), so what it calls was "
                "traced call by call, and what passes from one call to another stays"
            )
        return graph

    def baseline(self) -> None:
        """Say why a validation runs that was not due."""
        self._say("validates the dense network before the first event, for the report (baseline= takes its place)")

    def event(self, event: PruningEvent) -> None:
        """Say what an event removed and what is left."""
        self._say(str(event))

    def _say(self, what: str) -> None:
        if self.verbose:
            with above_bars():
                rank_zero_info(f"{NAME}: {what}")


def _what_stays(graph: ChannelGraph) -> str:
    frozen = list(graph.frozen.items())
    if not frozen:
        return ""
    named = [f"{layer} ({why if len(why) <= _REASON else why[:_REASON] + '...'})" for layer, why in frozen[:_NAMED]]
    others = [f"{len(frozen) - _NAMED} more"] if len(frozen) > _NAMED else []
    return f"; {len(frozen)} layer{'s stay' if len(frozen) > 1 else ' stays'}: {', '.join([*named, *others])}"
