"""Watching what layers receive, in the forward pass alone: statistics of their inputs, example by example.

Nothing of the activation is kept and nothing enters the graph, so this also sees layers that no gradient reaches.
Compiled code breaks its graph at every layer that is watched.

Shape legend: L = leading entries as the layer saw them, I = input channels of a layer, N = examples, C = channels of
all groups, S = statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.formulas import fold_examples
from lightning_taylor.scores.input_hooks import ConsumerHooks
from lightning_taylor.utilities.hooks import InputHook

__all__ = [
    "Statistic",
    "StatisticsHooks",
]

Statistic = Callable[[Tensor, int], Tensor]
"""From an input and the dimension that carries its channels to statistics over positions, shape ``(S, L, I)``."""


@final
class StatisticsHooks(ConsumerHooks["_Look"]):
    """Gathers statistics of the inputs of all layers that read a channel of the graph.

    Args:
        model: gets a forward pre-hook on each of them.
        graph: its channel graph at the present widths.
        statistic: what is gathered; computed without gradients.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, statistic: Statistic) -> None:
        super().__init__(model, graph, lambda consumer: _Look(consumer.module, statistic))
        # Differences of large sums need the digits; Apple's GPUs have none to spare.
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.matrix = self.channel_matrix(self.dtype, mean=True)
        self._shares: dict[frozenset[str], Tensor] = {}

    def take(self, examples: int) -> tuple[Tensor, Tensor] | None:
        """What was gathered since the last ``take``, and forget it.

        Args:
            examples: N, at least 1.

        Returns:
            Shape ``(S, C, N)``: per example the mean over positions, calls and layers, each layer counting once; and
            shape ``(C,)``, bool: the channels that were read. None if nothing ran.

        Raises:
            ValueError: if ``examples`` is less than 1.
        """
        if examples < 1:
            raise ValueError(f"examples must be at least 1, got {examples}")
        gathered = {name: calls for name, hook in self.by_layer.items() if (calls := hook.take())}
        if not gathered:
            return None
        with torch.no_grad():
            means = {name: _mean_of_calls(calls, examples) for name, calls in gathered.items()}
            statistics = len(next(iter(means.values())))
            sum_SCN = torch.stack(
                [self.matrix({n: mean[s] for n, mean in means.items()}, examples) for s in range(statistics)]
            )
            seen_C = self.matrix.channels_of(gathered)
            return torch.where(seen_C[:, None], sum_SCN / self._share(gathered)[:, None], 0), seen_C

    def _share(self, names: Iterable[str]) -> Tensor:
        """Shape ``(C,)``: how many of these layers read each channel."""
        key = frozenset(names)
        if key not in self._shares:
            ones = {n: torch.ones(1, self.matrix.widths[n], device=self.device) for n in key}
            self._shares[key] = self.matrix(ones, 1).squeeze(1)
        return self._shares[key]

    @override
    def close(self) -> None:
        """Take the hooks off, and forget what they hold."""
        super().close()
        for hook in self.by_layer.values():
            hook.take()


def _mean_of_calls(calls: list[Tensor], examples: int) -> Tensor:
    """Shape ``(S, N, I)``: windows of one example, and the calls of a layer that ran several times, averaged."""
    folded = [
        torch.stack([fold_examples(each_LI, examples) * (examples / max(1, len(each_LI))) for each_LI in call_SLI])
        for call_SLI in calls
    ]
    return torch.stack(folded).mean(0)


class _Look(InputHook):
    """A forward pre-hook that gathers the statistics of one layer's input, call by call."""

    def __init__(self, module: nn.Module, statistic: Statistic) -> None:
        super().__init__(module)
        self._statistic = statistic
        self._calls: list[Tensor] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Gather statistics before the layer's forward pass."""
        if not self.paused:  # asked here, where compiled code can follow: while paused its graph has no break
            self._look(args, kwargs)  # type: ignore[call-arg]

    @torch.compiler.disable
    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = self.input_of(args, kwargs)
        if x is None or not x.numel():
            return
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x = x.detach() if x.ndim >= self.batched else x.detach().unsqueeze(0)
            self._calls.append(self._statistic(x, 1 if self.maps else x.ndim - 1))

    def take(self) -> list[Tensor]:
        calls, self._calls = self._calls, []
        return calls
