"""A scorer that gathers by hooks on the layers that read channels, and owns them from its start to its close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from typing_extensions import override

from lightning_taylor.criteria.base import Scorer
from lightning_taylor.scores.accumulator import ChannelSums
from lightning_taylor.scores.input_hooks import ConsumerHooks

__all__ = [
    "HookedScorer",
]

Hooks = TypeVar("Hooks", bound=ConsumerHooks)


class HookedScorer(Scorer, Generic[Hooks]):
    """A scorer with one hook on each layer that reads a channel.

    A subclass adds ``end_batch``, which takes what the hooks saw, and ``scores``; and ``drop_batch``, if a second
    evaluation of a batch must not count.

    Args:
        hooks: just placed on the model.
        metric: the sums since the last event; None for a subclass that keeps something else.
    """

    def __init__(self, hooks: Hooks, metric: ChannelSums | None = None) -> None:
        self.hooks = hooks
        self._metric = metric

    @property
    @override
    def unscorable(self) -> Mapping[str, str]:
        return self.hooks.unscorable

    @property
    @override
    def metric(self) -> ChannelSums | None:
        return self._metric

    @override
    def pause(self) -> None:
        self.hooks.pause()

    @override
    def resume(self) -> None:
        self.hooks.resume()

    @override
    def close(self) -> None:
        self.hooks.close()
        self.drop_batch()
