"""The oracle: what the loss really does when a channel is gone, one channel after the other.

A channel is gone when the layers that read it receive zeros. All copies of a batch that differ only in the channel
that is gone run as one, under ``torch.func.vmap`` over their masks: whatever comes before the first layer that reads
the channel is computed once for all of them, and what comes after it runs as one large batch.

Shape legend: K = copies that run together, I = input channels of a layer, S = channels of a group that are measured,
B = batches.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.scores.consumers import Consumer, find_consumers
from lightning_taylor.scores.input_hooks import OpenHeads
from lightning_taylor.utilities.calls import batch_size, evaluating, moved

__all__ = [
    "Column",
    "Loss",
    "Oracle",
    "StateFile",
    "fingerprint",
    "measure_oracle",
    "sample_channels",
]

Loss = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to the mean loss of its examples, a scalar."""


@dataclass(frozen=True, eq=False)
class Oracle:
    """What was measured.

    Attributes:
        channels: group name -> shape ``(S,)``, int64: which of its channels.
        changes: group name -> shape ``(S, B)``, float64: loss without the channel minus loss with all, batch by batch.
        losses: shape ``(B,)``, float64: the loss with all channels.
        examples: shape ``(B,)``, float64: how many examples each batch had.
    """

    channels: Mapping[str, Tensor]
    changes: Mapping[str, Tensor]
    losses: Tensor
    examples: Tensor

    @property
    def loss(self) -> float:
        """The mean loss of an example with all channels."""
        return float((self.losses * self.examples).sum() / self.examples.sum())

    def signed(self, weight_B: Tensor | None = None) -> dict[str, Tensor]:
        """oracle-loss: group name -> shape ``(S,)``: the change of the mean loss; negative where removal helps.

        Args:
            weight_B: how often each batch counts; by default once.
        """
        share_B = self.examples if weight_B is None else self.examples * weight_B
        return {name: change_SB @ (share_B / share_B.sum()) for name, change_SB in self.changes.items()}

    def absolute(self, weight_B: Tensor | None = None) -> dict[str, Tensor]:
        """oracle-abs: group name -> shape ``(S,)``: the absolute value of ``signed``."""
        return {name: change_S.abs() for name, change_S in self.signed(weight_B).items()}


def sample_channels(
    graph: ChannelGraph, fraction: float = 1.0, *, least: int = 8, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """A random sample of every group's channels, for an oracle that would take too long over all.

    Args:
        graph: the channel graph.
        fraction: of each group, rounded up, in (0, 1].
        least: as many of each group at least, or all; a rank correlation needs a few.
        generator: a CPU generator; torch's default one if None.

    Returns:
        Group name -> shape ``(S,)``, sorted int64 indices.

    Raises:
        ValueError: for a fraction outside of its range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    chosen = {}
    for name, group in graph.groups.items():
        count = min(group.size, max(least, -int(-group.size * fraction // 1)))
        chosen[name] = torch.randperm(group.size, generator=generator)[:count].sort().values
    return chosen


def measure_oracle(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    loss: Loss,
    *,
    channels: Mapping[str, Tensor] | None = None,
    copies: int = 16,
    state: str | Path | None = None,
    progress: bool = True,
) -> Oracle:
    r"""Measure the change of the loss when a channel is gone, for one channel after the other.

    .. math::  \Delta_c = C(D \mid g_c = 0) - C(D)

    in evaluation mode and without gradients; the model is left as it was. Takes about one forward pass of the layers
    behind the channel's first consumer for each channel and batch.

    Args:
        model: any module.
        graph: its channel graph at the present widths.
        batches: the data, in a fixed order; each is moved to the model's device.
        loss: of a model and a batch, such as ``lambda net, batch: cross_entropy(net(batch[0]), batch[1])``.
        channels: group name -> which of its channels; by default all of all groups. See ``sample_channels``.
        copies: how many channels are gone at once, each in a copy of its own: memory grows with it.
        state: a file for what is measured, written after each batch; if it is there, the batches in it are not
            measured again.
        progress: show a bar.

    Returns:
        The changes of every batch.

    Raises:
        ValueError: if the state file is of another model or other channels; if there is no batch.
    """
    wanted = dict(channels) if channels is not None else {n: torch.arange(g.size) for n, g in graph.groups.items()}
    file = StateFile(Path(state), fingerprint(model, wanted)) if state is not None else None
    columns = file.load() if file else []
    skip, total = len(columns), length_hint(batches) or None
    with _bar(progress, total, skip) as advance, evaluating(model), torch.no_grad():
        probe = _Probe(model, graph, loss, copies)
        try:
            for place, batch in enumerate(batches):
                if place < skip:
                    continue
                columns.append(probe.column(moved(batch, probe.device), wanted, advance))
                if file:
                    file.save(columns)
        finally:
            probe.close()
    if not columns:
        raise ValueError("the oracle needs data, and there is no batch")
    return Oracle(
        channels=wanted,
        changes={name: torch.stack([c.changes[name] for c in columns], 1) for name in wanted},
        losses=torch.tensor([c.loss for c in columns], dtype=torch.float64),
        examples=torch.tensor([c.examples for c in columns], dtype=torch.float64),
    )


class _Probe:
    """Runs a model without some of its channels."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, loss: Loss, copies: int) -> None:
        self._model, self._graph, self._loss, self._copies = model, graph, loss, max(1, copies)
        self._consumers, _ = find_consumers(model, graph)
        first = next(iter(model.parameters()), None)
        self.device = first.device if first is not None else torch.device("cpu")
        everyone = {consumer.name: consumer for found in self._consumers.values() for consumer in found}
        self._heads = OpenHeads(model, everyone)
        # A mask on the queries is no removal where products are divided by their lengths, and those of the keys.
        self._stubborn = {name for name, group in graph.groups.items() if group.of(Role.QUERY)}

    def close(self) -> None:
        self._heads.close()

    def column(self, batch: Any, channels: Mapping[str, Tensor], advance: Callable[[float], None]) -> Column:
        base = float(self._loss(self._model, batch))
        found = Column(base, batch_size(batch))
        count = sum(len(index_S) for index_S in channels.values())
        for name, index_S in channels.items():
            losses = []
            for part_K in index_S.split(self._copies):
                losses.append(self._without(name, part_K, batch))
                advance(len(part_K) / count)
            found.changes[name] = torch.cat(losses) - base if losses else torch.zeros(0, dtype=torch.float64)
        return found

    def _without(self, name: str, channel_K: Tensor, batch: Any) -> Tensor:
        """Shape ``(K,)``, float64 on the CPU: the loss of K copies, each without one channel."""
        if name in self._consumers and name not in self._stubborn:
            try:
                return self._together(self._consumers[name], channel_K, batch).to("cpu", torch.float64)
            except (RuntimeError, ValueError):
                # Code that vmap cannot follow: an operation in place across copies, a branch on a value.
                self._stubborn.add(name)
        return torch.tensor([self._alone(name, channel, batch) for channel in channel_K], dtype=torch.float64)

    def _together(self, consumers: list[Consumer], channel_K: Tensor, batch: Any) -> Tensor:
        masks = {
            consumer.name: torch.ones(len(channel_K), consumer.width, device=self.device) for consumer in consumers
        }
        for consumer in consumers:
            rows = torch.arange(len(channel_K))[:, None].expand(-1, consumer.index.shape[1])
            masks[consumer.name][rows, consumer.index[channel_K]] = 0
        watched = {consumer.name: consumer for consumer in consumers}

        def run(mask: dict[str, Tensor]) -> Tensor:
            hooks = {name: _Masking(consumer.module, mask[name]) for name, consumer in watched.items()}
            handles = [watched[name].watch(hook) for name, hook in hooks.items()]
            try:
                losses = self._loss(self._model, batch)
            finally:
                for handle in handles:
                    handle.remove()
            if silent := [name for name, hook in hooks.items() if not hook.ran]:
                # Not called, or its weight handed to a function: only a change of the weight is sure to count.
                raise ValueError(f"{silent} did not run")
            return losses

        with warnings.catch_warnings():
            # An operation without a rule for copies runs once for each: it costs time only.
            warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented")
            return torch.func.vmap(run, randomness="same")(masks)

    def _alone(self, name: str, channel: Tensor, batch: Any) -> float:
        """The loss with the weights that read one channel at zero."""
        kept: dict[str, Tensor] = {}
        tensors = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        try:
            for s in self._graph.groups[name].read:
                tensor = tensors[s.tensor].detach()
                kept.setdefault(s.tensor, tensor.clone())
                tensor.index_fill_(s.dim, s.index[channel].flatten().to(tensor.device), 0)
            return float(self._loss(self._model, batch))
        finally:
            for tensor_name, value in kept.items():
                tensors[tensor_name].detach().copy_(value)


class _Masking:
    """A forward pre-hook that multiplies a layer's input channels by a mask."""

    def __init__(self, module: nn.Module, mask_I: Tensor) -> None:
        self._positions = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
        self._mask_I = mask_I
        self.ran = False

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.ran = True
        x = args[0] if args else kwargs["input"]
        masked = x * self._mask_I.to(x.dtype).view(-1, *[1] * self._positions)
        return ((masked, *args[1:]), kwargs) if args else (args, {**kwargs, "input": masked})


@contextmanager
def _bar(show: bool, batches: int | None, done: int) -> Iterator[Callable[[float], None]]:
    """A bar over batches that moves with every few channels; what it yields moves it."""
    columns = (TextColumn("oracle"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"), TimeRemainingColumn())
    with Progress(*columns, disable=not show, transient=True) as progress:
        task = progress.add_task("oracle", total=batches, completed=done)
        yield lambda share: progress.advance(task, share)


@dataclass
class Column:
    """One batch: its loss, and the change without each channel."""

    loss: float
    examples: int
    changes: dict[str, Tensor] = field(default_factory=dict)


class StateFile:
    """The columns that are finished, and whose they are."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint

    def load(self) -> list[Column]:
        """The finished columns, none if there is no file.

        Raises:
            ValueError: if they are somebody else's.
        """
        if not self._path.exists():
            return []
        kept = torch.load(self._path, weights_only=True)
        if kept["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"{self._path} was measured on other weights or other channels; delete it, or give another file"
            )
        return [Column(**column) for column in kept["columns"]]

    def save(self, columns: list[Column]) -> None:
        """Write all finished columns, whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        torch.save({"fingerprint": self._fingerprint, "columns": [vars(c) for c in columns]}, unfinished)
        unfinished.replace(self._path)


def fingerprint(model: nn.Module, channels: Mapping[str, Tensor]) -> str:
    """Of all weights and buffers, and of the channels that are measured."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**model.state_dict(), **{f"channels of {n}": t for n, t in channels.items()}}.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
