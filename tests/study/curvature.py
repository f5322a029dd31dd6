"""OBD without its noise, for classifiers: the second derivative by the gates from one backward pass for each class.

What random probes estimate with the noise of all other channels, this takes from the derivatives of the logits. It
needs to know the logits, which a criterion inside of a fit does not see; so it belongs to the study.

Shape legend: N = examples, K = classes, C = channels of all groups, I = input channels of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.criteria.obd import OBD
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.channel_matrix import Block, ChannelMatrix
from lightning_taylor.scores.consumers import find_consumers
from lightning_taylor.scores.formulas import fold_examples
from lightning_taylor.scores.input_hooks import OpenHeads
from lightning_taylor.scores.taylor_hook import TaylorHook
from lightning_taylor.study.score_batches import Gathered
from lightning_taylor.utilities.calls import evaluating, moved

__all__ = ["Logits", "gather_curvature"]

Logits = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to logits of shape ``(N, K)``."""


def gather_curvature(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Any], logits: Logits, *, name: str = "OBD, exact"
) -> Gathered:
    r"""The curvature of a classifier's cross entropy by a gate on each channel, batch by batch.

    .. math::  \Theta_c = \frac{1}{N} \sum_n \Bigl( \sum_k p_{nk} J_{nkc}^2 - \bigl(\sum_k p_{nk} J_{nkc}\bigr)^2 \Bigr)

    with :math:`p` the softmax and :math:`J_{nkc}` the derivative of logit ``k`` by the gate: the Gauss-Newton term of
    the Hessian. It is the whole second derivative, and so what ``OBD`` estimates, where the logits are piecewise
    linear in the gate: in networks of convolutions, ReLUs, max-pooling and batch norms in evaluation mode, for
    channels that are read at one depth. A stage of residual blocks is read at several.

    Units: of the loss of one example. Takes one forward and K backward passes for each batch; evaluation mode, and
    the gradients of the model are dropped.

    Args:
        model: a classifier.
        graph: its channel graph at the present widths.
        batches: the data; each batch is moved to the model's device.
        logits: of a model and a batch, such as ``lambda net, batch: net(batch[0])``.
        name: of this criterion in the result.

    Raises:
        ValueError: if the logits are not of shape ``(N, K)``; if there is no batch.
    """
    consumer = _Slopes(model, graph)
    states: list[Mapping[str, Tensor]] = []
    try:
        with evaluating(model):
            for batch in batches:
                states.append(consumer.state(logits(model, moved(batch, consumer.device))))
    finally:
        consumer.close()
        model.zero_grad(set_to_none=True)
    if not states:
        raise ValueError("scores need data, and there is no batch")
    scorer = OBD().scorer(model, graph)  # keeps sums of the same layout
    scorer.close()
    return Gathered({name: scorer}, {name: states})


class _Slopes:
    """Derivatives of logits by the gates, example by example, through the taps of the Taylor criterion."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        consumers, _ = find_consumers(model, graph)
        everyone = {consumer.name: consumer for found in consumers.values() for consumer in found}
        weights = [p for consumer in everyone.values() for p in consumer.module.parameters(recurse=False)]
        self.device = weights[0].device if weights else torch.device("cpu")
        self._assembly = ChannelMatrix(
            graph,
            {name: consumer.width for name, consumer in everyone.items()},
            [Block(group, consumer.name, consumer.index) for group, found in consumers.items() for consumer in found],
            dtype=torch.promote_types(weights[0].dtype, torch.float32) if weights else torch.float32,
            device=self.device,
        )
        self._heads = OpenHeads(model, everyone)
        self._taps = {name: TaylorHook(consumer.module, "sum") for name, consumer in everyone.items()}
        self._handles = [consumer.watch(self._taps[name]) for name, consumer in everyone.items()]

    def state(self, logit_NK: Tensor) -> dict[str, Tensor]:
        """One batch's sums, as ``ChannelSums`` keeps them."""
        if logit_NK.ndim != 2:
            raise ValueError(f"logits must have shape (examples, classes), got {tuple(logit_NK.shape)}")
        examples = len(logit_NK)
        share_NK = logit_NK.detach().softmax(1).to(self._assembly.dtype)
        square_CN, mean_CN = (self._assembly({}, examples) for _ in range(2))
        read: set[str] = set()
        for k in range(logit_NK.shape[1]):
            logit_NK[:, k].sum().backward(retain_graph=True)
            calls = {name: taken for name, tap in self._taps.items() if (taken := tap.take())}
            slopes = {n: reduce(torch.add, (fold_examples(c, examples) for c in some)) for n, some in calls.items()}
            slope_CN = self._assembly(slopes, examples)
            square_CN = square_CN + share_NK[:, k] * slope_CN.square()
            mean_CN = mean_CN + share_NK[:, k] * slope_CN
            read |= set(calls)
        total_C = (square_CN - mean_CN.square()).sum(1)
        seen_C = self._assembly.channels_of(read) & torch.isfinite(total_C).all()
        count_C = (seen_C * examples).to(total_C.dtype)
        return {"total": torch.where(seen_C, total_C, 0).cpu(), "examples": count_C.cpu()}

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._heads.close()
