"""The Taylor criterion of 2017: the absolute first-order change of the loss, example by example.

Shape legend: C = channels of all groups, I = input channels of a layer, L = leading entries as the layer saw them,
N = examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import final, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.hooked import HookedScorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.accumulator import ChannelSums
from lightning_taylor.scores.formulas import Absolute, Positions, taylor
from lightning_taylor.scores.input_hooks import ConsumerHooks
from lightning_taylor.scores.normalize import Normalization
from lightning_taylor.scores.rows import fold_calls
from lightning_taylor.scores.taylor_hook import TaylorHook

__all__ = [
    "Taylor",
]


@final
class Taylor(Criterion):
    r"""First-order Taylor score: how much removing the channel changes the loss of an example, on average.

    .. math::  \Theta_c = \frac{1}{N} \sum_n \Bigl| \sum_{l} \sum_p
               \frac{\partial C_n}{\partial x_{nlcp}}\, x_{nlcp} \Bigr|

    with ``x`` the inputs of all layers ``l`` that read the channel: removing a channel zeroes what its consumers
    receive. The contributions of several consumers, and of several calls of one layer, are added with their signs
    before the absolute value. For a plain stack of convolution, ReLU and pooling this is the paper's post-ReLU
    feature map, with the positions ``p`` counted at the consumer.

    Compiled code (``torch.compile``, ``fullgraph=True`` too) gathers them inside of its graph. The first batch, and one
    of another size (the last of an epoch), runs uncompiled while scores are gathered.

    Units: of the loss, for one example; assumes a mean-reduced loss (see ``formulas.taylor``). Averaged over the
    examples since the last event, of all ranks.

    Args:
        positions: "sum" over the positions of a map, the first-order change itself; or "mean", the 1/M of the paper's
            Eq. 8, which makes scores of large and small maps differ in scale and so wants a normalisation. A channel
            that was flattened into a linear layer has its positions in that layer's input.
        absolute: of what the absolute value is taken: of the change of each "example" (the paper); of each "batch",
            in which examples of opposite sign cancel (a micro-batch of one rank); or of the whole "window" between
            two events. The formula above is that of "example".

    Evidence for the defaults (3 seeds, ``tests/benchmarks/oracle.py``): Spearman's correlation with oracle-abs over all
    layers, raw and after l2, is 0.86 and 0.82 for SqueezeNet on flowers, 0.73 and 0.60 for ResNet-20 and 0.71 and 0.63
    for a VGG-16 with batch norm on CIFAR-10; with the mean over positions 0.64 and 0.82, 0.31 and 0.55, -0.28 and
    0.63. ResNet-20 pruned to 50 % and 30 % of its FLOPs keeps 74.7 and 65.8 % accuracy with raw scores, 73.5 and
    63.2 % with l2, and 78.1 and 69.1 % with ``cost_power=0.5``, its own power (5 seeds,
    ``tests/benchmarks/accuracy.py``).

    Raises:
        ValueError: for another ``positions`` or ``absolute``.

    Source: Molchanov et al. 2017, Eq. 8.

    Example:
        >>> Taylor(positions="mean")
        Taylor(positions='mean', absolute='example')
    """

    def __init__(self, positions: Positions = "sum", absolute: Absolute = "example") -> None:
        if positions not in get_args(Positions):
            raise ValueError(f"positions must be 'sum' or 'mean', got {positions!r}")
        if absolute not in get_args(Absolute):
            raise ValueError(f"absolute must be 'example', 'batch' or 'window', got {absolute!r}")
        self.positions: Positions = positions
        self.absolute: Absolute = absolute

    @property
    @override
    def default_normalization(self) -> Normalization:
        """Where positions are summed it is the change of the loss, of one unit everywhere; a mean wants "l2"."""
        return "none" if self.positions == "sum" else "l2"

    @property
    @override
    def default_cost_power(self) -> float:
        """Between what a channel is worth and what it is worth per FLOP; better than both where it was measured."""
        return 0.5 if self.positions == "sum" else 0.0

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Place a hook on every layer that reads a channel of the graph."""
        return _TaylorScorer(model, graph, self.positions, self.absolute)


@final
class _TaylorScorer(HookedScorer[ConsumerHooks[TaylorHook]]):
    needs_input_gradient = True

    def __init__(self, model: nn.Module, graph: ChannelGraph, positions: Positions, absolute: Absolute) -> None:
        self._absolute: Absolute = absolute
        hooks = ConsumerHooks(model, graph, lambda consumer: TaylorHook(consumer.module, positions))
        # A channel that owns several entries (a flattened map) has its positions there.
        self._matrix = hooks.channel_matrix(mean=positions == "mean")
        self._sums = ChannelSums(self._matrix.channels, dtype=self._matrix.dtype, device=self._matrix.device)
        super().__init__(hooks, self._sums)
        self._rows = graph.rows
        self._examples: int | None = None  # of the batches that compiled code can gather

    @override
    def before_backward(self) -> None:
        for hook in self.hooks.by_layer.values():
            hook.drop()

    @override
    def after_backward(self) -> None:
        for hook in self.hooks.by_layer.values():
            hook.keep()

    @override
    def end_batch(self, *, examples: int, grad_scale: float | Tensor = 1.0) -> None:
        if examples < 1:
            raise ValueError(f"examples must be at least 1, got {examples}")
        gathered = {name: calls for name, hook in self.hooks.by_layer.items() if (calls := hook.take())}
        if not gathered:
            return
        # A fit may go on at the smaller last batch of an epoch: the larger ones after it are those to be compiled for.
        if self._examples is None or examples > self._examples:
            self._make_gates({name: len(calls[0]) for name, calls in gathered.items()}, examples)
        with torch.no_grad():
            score_C = self._score(gathered, examples) / grad_scale
            self._sums.update(score_C, self._matrix.channels_of(gathered), examples)

    def _score(self, gathered: Mapping[str, list[Tensor]], examples: int) -> Tensor:
        """Shape ``(C,)``: of one batch."""
        if self._absolute != "example":
            sums = {name: torch.cat(calls).sum(0, keepdim=True) for name, calls in gathered.items()}
            return taylor(self._matrix(sums, 1), self._absolute)
        # Usually all have one row for each example. Those that a mask chose are other ones, and stand for themselves.
        by_length: dict[int, dict[str, Tensor]] = {}
        for name, calls in gathered.items():
            for block in fold_calls(calls, examples, self._rows.get(name)):
                alike = by_length.setdefault(len(block), {})
                alike[name] = alike[name] + block if name in alike else block
        return reduce(torch.add, (taylor(self._matrix(entries, n)) for n, entries in by_length.items()))

    def _make_gates(self, entries: Mapping[str, int], examples: int) -> None:
        zero = torch.zeros((), dtype=self._matrix.dtype, device=self._matrix.device)
        for name, length in entries.items():
            self.hooks.by_layer[name].make_gate(zero, length, self._matrix.widths[name])
        self._examples = examples

    @override
    def compiles(self, examples: int) -> bool:
        return self._examples == examples

    @override
    def carry_over(self, before: Scorer, remove: Mapping[str, Tensor]) -> None:
        if isinstance(before, _TaylorScorer) and before._examples:
            lengths = {
                name: hook.entries for name, hook in before.hooks.by_layer.items() if name in self.hooks.by_layer
            }
            self._make_gates({name: length for name, length in lengths.items() if length}, before._examples)

    @override
    def drop_batch(self) -> None:
        for hook in self.hooks.by_layer.values():
            hook.take()

    @override
    def scores(self) -> dict[str, Tensor]:
        mean_C = self._sums.mean()
        return self._matrix.by_group(mean_C.abs() if self._absolute == "window" else mean_C)
