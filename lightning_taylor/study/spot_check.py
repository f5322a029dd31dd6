"""A cheap look at whether the scores are any good, in the middle of a fit: a few channels against the oracle.

Shape legend: C = channels of a group, S = those of them that are measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import signature
from typing import Any, final

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.modules.model_copy import private_copy
from lightning_taylor.study.correlation import spearman
from lightning_taylor.study.oracle import measure_oracle

__all__ = [
    "SpotCheck",
    "draw_channels",
    "spot_check",
    "training_loss",
]

_COPIES = 4  # at once: a training batch fills the memory that there is, and these come on top


def spot_check(
    module: nn.Module, graph: ChannelGraph, scores: Mapping[str, Tensor], batch: Any, count: int, *, seed: int = 0
) -> float:
    """Spearman's correlation of scores with oracle-abs, over a random sample of channels and one batch.

    The loss is what the training step of a copy makes of the batch, in evaluation mode and without gradients; the
    module itself, its metrics and loggers see nothing of it. Costs about half a training step for each channel.

    On several ranks the first one alone does this: not for a training step that talks to the others by itself, with
    ``torch.distributed.all_gather`` and the like, which would wait for them for ever.

    Args:
        module: a LightningModule whose training step returns its loss.
        graph: its channel graph at the present widths.
        scores: group name -> shape ``(C,)``, as the channels are ranked.
        batch: as the training step takes it, on the module's device.
        count: channels to measure, of all groups together; all if there are fewer.
        seed: of the sample.

    Returns:
        In [-1, 1]. Its standard error is about ``1 / sqrt(count)``: one event tells little, many tell more.

    Raises:
        Exception: whatever the training step raises where it has no Trainer; ValueError if it returns no loss.

    Source: Molchanov et al. 2017, section 2.1 and Eq. 10.
    """
    channels = draw_channels(scores, count, torch.Generator().manual_seed(seed))
    twin = private_copy(module)
    for metric in (part for part in twin.modules() if isinstance(part, Metric)):
        metric.sync_on_compute = metric._to_sync = False  # the other ranks do not wait for them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the module's own: it said them before, and what it logs has nowhere to go
        oracle = measure_oracle(twin, graph, [batch], training_loss, channels=channels, copies=_COPIES, progress=False)
    truth = oracle.absolute()
    ranked = torch.cat([scores[name].to("cpu", torch.float64)[index_S] for name, index_S in channels.items()])
    return spearman(ranked, torch.cat([truth[name] for name in channels]))


def draw_channels(scores: Mapping[str, Tensor], count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A random sample of all groups' channels together, each as likely as any other.

    Returns:
        Group name -> shape ``(S,)``, sorted int64 indices; groups without any are left out.

    Example:
        >>> drawn = draw_channels({"a": torch.rand(3), "b": torch.rand(5)}, 4, torch.Generator().manual_seed(0))
        >>> sum(len(index_S) for index_S in drawn.values())
        4
    """
    owners = [(name, c) for name, score_C in scores.items() for c in range(len(score_C))]
    drawn: dict[str, list[int]] = {}
    for place in torch.randperm(len(owners), generator=generator)[:count].sort().values.tolist():
        name, channel = owners[place]
        drawn.setdefault(name, []).append(channel)
    return {name: torch.tensor(found) for name, found in drawn.items()}


def training_loss(module: nn.Module, batch: Any) -> Tensor:
    """What a LightningModule's training step makes of a batch, a scalar.

    Raises:
        ValueError: if it returns no loss, as in manual optimization.
    """
    step: Any = module.training_step
    found = step(batch, 0) if len(signature(step).parameters) > 1 else step(batch)
    loss = found.get("loss") if isinstance(found, Mapping) else found
    if not isinstance(loss, Tensor) or loss.ndim:
        raise ValueError(f"{type(module).__name__}.training_step returned {type(found).__name__} in place of a loss")
    return loss


@final
class SpotCheck:
    """Checks the scores of one event after the other, and says once that it cannot."""

    def __init__(self) -> None:
        self._told = False

    def correlation(
        self,
        module: nn.Module,
        graph: ChannelGraph,
        scores: Mapping[str, Tensor],
        batch: Any,
        channels: int,
        *,
        step: int,
    ) -> float | None:
        """Spearman's correlation of the scores with what the removal of some channels does to the loss.

        Args:
            module: a LightningModule, whose training step says the loss.
            graph: its channel graph at the present widths.
            scores: group name -> shape ``(C,)``, of the event that is due.
            batch: what the loss is of.
            channels: how many are removed, one by one on a copy.
            step: of the event, which draws the channels.

        Returns:
            The correlation; None, after a warning the first time, if the training step needs its Trainer.
        """
        try:
            return spot_check(module, graph, scores, batch, channels, seed=step)
        except Exception as error:  # of the user's training step, which was not made to run apart from a Trainer
            if not self._told:
                name, said = type(module).__name__, f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"oracle_sample: {name}'s training step does not run apart from its Trainer: {said}", stacklevel=2
                )
            self._told = True
            return None
