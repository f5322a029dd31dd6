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
from torch.nn.modules.conv import _ConvNd

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.formulas import fold_examples
from lightning_taylor.scores.input_hooks import Watch

__all__ = [
    "Looks",
    "Statistic",
]

Statistic = Callable[[Tensor, int], Tensor]
"""From an input and the dimension that carries its channels to statistics over positions, shape ``(S, L, I)``."""


@final
class Looks:
    """Gathers statistics of the inputs of all layers that read a channel of the graph.

    Args:
        model: gets a forward pre-hook on each of them.
        graph: its channel graph at the present widths.
        statistic: what is gathered; computed without gradients.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, statistic: Statistic) -> None:
        self._watch = Watch(model, graph, lambda reader: _Look(reader.module, statistic))
        self._hooks = self._watch.hooks
        self.blind, self.device = self._watch.blind, self._watch.device
        # Differences of large sums need the digits; Apple's GPUs have none to spare.
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.assembly = self._watch.assembly(self.dtype, mean=True)
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
        gathered = {name: calls for name, hook in self._hooks.items() if (calls := hook.take())}
        if not gathered:
            return None
        with torch.no_grad():
            means = {name: _mean_of_calls(calls, examples) for name, calls in gathered.items()}
            statistics = len(next(iter(means.values())))
            sum_SCN = torch.stack(
                [self.assembly({n: mean[s] for n, mean in means.items()}, examples) for s in range(statistics)]
            )
            seen_C = self.assembly.fed_by(gathered)
            return torch.where(seen_C[:, None], sum_SCN / self._share(gathered)[:, None], 0), seen_C

    def _share(self, names: Iterable[str]) -> Tensor:
        """Shape ``(C,)``: how many of these layers read each channel."""
        key = frozenset(names)
        if key not in self._shares:
            ones = {n: torch.ones(1, self.assembly.widths[n], device=self.device) for n in key}
            self._shares[key] = self.assembly(ones, 1).squeeze(1)
        return self._shares[key]

    def pause(self) -> None:
        """Leave the passes alone until ``resume``."""
        self._watch.pause()

    def resume(self) -> None:
        """Watch the passes again."""
        self._watch.resume()

    def close(self) -> None:
        """Take the hooks off, and forget what they hold."""
        self._watch.close()
        for hook in self._hooks.values():
            hook.take()


def _mean_of_calls(calls: list[Tensor], examples: int) -> Tensor:
    """Shape ``(S, N, I)``: windows of one example, and the calls of a layer that ran several times, averaged."""
    folded = [
        torch.stack([fold_examples(each_LI, examples) * (examples / max(1, len(each_LI))) for each_LI in call_SLI])
        for call_SLI in calls
    ]
    return torch.stack(folded).mean(0)


class _Look:
    """A forward pre-hook that gathers the statistics of one layer's input, call by call."""

    def __init__(self, module: nn.Module, statistic: Statistic) -> None:
        self._maps = isinstance(module, _ConvNd)
        self._batched = len(module.kernel_size) + 2 if isinstance(module, _ConvNd) else 2
        self._statistic = statistic
        self._calls: list[Tensor] = []
        self.paused = False

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the layer's forward pass; passes without gradients are evaluation, and do not count."""
        x = args[0] if args else kwargs.get("input")
        if self.paused or not torch.is_grad_enabled() or not isinstance(x, Tensor) or not x.numel():
            return
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x = x.detach() if x.ndim >= self._batched else x.detach().unsqueeze(0)
            self._calls.append(self._statistic(x, 1 if self._maps else x.ndim - 1))

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        # A copy of the model carries a hook that does nothing.
        return _make_idle, ()

    def take(self) -> list[Tensor]:
        calls, self._calls = self._calls, []
        return calls


def _idle(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    return None


def _make_idle() -> Callable[..., None]:
    return _idle
