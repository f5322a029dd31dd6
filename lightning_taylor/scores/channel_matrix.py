"""From what layers' inputs contribute to what channels contribute: one sparse matrix, built once per event.

Shape legend: C = channels of all groups, one after the other; E = entries of all sources, one after the other;
I = entries of one source; M = entries that one channel owns in it; N = examples.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_taylor.graph.channel_graph import ChannelGraph

__all__ = [
    "Block",
    "ChannelMatrix",
]

Source = TypeVar("Source", bound=Hashable)

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Block(Generic[Source]):
    """The entries of one source that belong to one group.

    Attributes:
        group: the group's name.
        source: a layer's input (the module's name), or a dimension of a weight.
        index: shape ``(C, M)``, int64: row ``c`` lists the entries of channel ``c``.
        scale: factor on each entry.
    """

    group: str
    source: Source
    index: Tensor
    scale: float = 1.0


class ChannelMatrix(Generic[Source]):
    """Adds up the entries of all sources into channels: ``channel_CN = A_CE @ entry_EN``, with ``A`` sparse.

    Args:
        graph: fixes which groups there are and the order of their channels.
        widths: source -> I, in the order in which their entries are laid out.
        parts: which entries go to which channels; an entry named twice for a channel counts once.
        dtype: of the matrix, and so of what it is applied to.
        device: where it is kept.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        widths: Mapping[Source, int],
        parts: Iterable[Block[Source]],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.widths = dict(widths)
        self.dtype, self.device = dtype, device
        self._spans = _spans({name: group.size for name, group in graph.groups.items()})
        self.channels = sum(group.size for group in graph.groups.values())
        parts = list(parts)
        self._groups_of: dict[Source, set[str]] = {source: set() for source in widths}
        for part in parts:
            self._groups_of[part.source].add(part.group)
        row, column, scale = _entries(parts, self._spans, _spans(self.widths))
        # Sorted by row: then the matrix is a row pointer and a list of columns, as embedding_bag wants it.
        self._columns = column.to(device)
        self._scales = scale.to(device, dtype)
        count_C = torch.bincount(row, minlength=self.channels)
        self._starts = F.pad(count_C.cumsum(0), (1, 0)).to(device)
        self._masks: dict[frozenset[Source], Tensor] = {}

    def __call__(self, entries: Mapping[Source, Tensor], examples: int) -> Tensor:
        """Sum the entries into channels.

        Args:
            entries: source -> shape ``(N, I)``; a source that is left out counts as zero.
            examples: N.

        Returns:
            Shape ``(C, N)``.
        """
        pieces = [
            entries[source].to(self.device, self.dtype)
            if source in entries
            else torch.zeros(examples, width, dtype=self.dtype, device=self.device)
            for source, width in self.widths.items()
        ]
        if not pieces or not len(self._columns):
            return torch.zeros(self.channels, examples, dtype=self.dtype, device=self.device)
        # The segmented sum that torch has: one kernel, and unlike index_add the same bits every time on a GPU.
        return F.embedding_bag(
            self._columns,
            torch.cat(pieces, dim=1).t().contiguous(),  # two kernels; transposing each piece is one per layer
            self._starts,
            mode="sum",
            per_sample_weights=self._scales,
            include_last_offset=True,
        )

    def channels_of(self, sources: Iterable[Source]) -> Tensor:
        """Return shape ``(C,)``, bool: the channels of groups that have entries in any of these sources."""
        key = frozenset(sources)
        if key not in self._masks:
            groups = {group for source in key for group in self._groups_of[source]}
            mask_C = torch.zeros(self.channels, dtype=torch.bool)
            for group in groups:
                mask_C[self._spans[group]] = True
            self._masks[key] = mask_C.to(self.device)
        return self._masks[key]

    def by_group(self, mean_C: Tensor) -> dict[str, Tensor]:
        """Split into group name -> ``(C,)`` scores, float32 on the CPU; groups with a nan (never seen) are left out."""
        mean_C = mean_C.detach().to("cpu", torch.float32)
        unseen_C = mean_C.isnan().numpy()
        return {name: mean_C[span].clone() for name, span in self._spans.items() if not unseen_C[span].any()}


def _spans(sizes: Mapping[Key, int]) -> dict[Key, slice]:
    spans, start = {}, 0
    for name, size in sizes.items():
        spans[name] = slice(start, start + size)
        start += size
    return spans


def _entries(
    parts: list[Block[Source]], rows: Mapping[str, slice], columns: Mapping[Source, slice]
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of every nonzero of the matrix, sorted by row and without repetition."""
    if not parts:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    entries = torch.tensor([part.index.numel() for part in parts])
    row = torch.cat([_rows_of(part, rows[part.group]) for part in parts])
    start = torch.tensor([columns[part.source].start for part in parts])
    column = torch.cat([part.index.flatten() for part in parts]) + start.repeat_interleave(entries)
    scale = torch.tensor([part.scale for part in parts], dtype=torch.float64).repeat_interleave(entries)
    width = int(column.max()) + 1 if len(column) else 1
    # One number a pair: unique sorts numbers several times faster than pairs.
    pair, inverse = torch.unique(row * width + column, return_inverse=True)
    value = torch.empty(len(pair), dtype=torch.float64)
    value[inverse] = scale
    return pair // width, pair % width, value


def _rows_of(part: Block[Source], span: slice) -> Tensor:
    row = torch.arange(span.start, span.stop)
    return row if part.index.shape[1] == 1 else row.repeat_interleave(part.index.shape[1])
