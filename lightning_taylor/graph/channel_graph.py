"""The channel graph of a whole model: its groups, what is frozen, and what is left after a removal.

Shape legend: C = channels of a group, M = entries of one tensor dimension that one channel owns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.row_layout import RowLayout
from lightning_taylor.graph.text_table import html_table, text_table
from lightning_taylor.graph.types import Axis, ChannelGroup, LinkedAttribute, Operation, Remove, Slice

__all__ = [
    "ChannelGraph",
    "checked_indices",
    "some",
]


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Which channels of a model can be removed, what goes with each, and why the others cannot.

    Attributes:
        groups: name -> group, in the order of the forward pass.
        frozen: layer name -> the reason in words, for every channel-carrying layer with channels that must stay.
        layers: layer name -> the axis of its weight that carries its output channels, in forward order.
        shapes: every parameter and buffer by its (first) qualified name -> its shape now.
        parameters: which of those names are parameters.
        dense: the same when the model was traced.
        operations: what the evaluation path costs; for ``plan.cost``.
        unseen: layers that neither the training nor the evaluation path reached.
        dense_sizes: group name -> its size when the model was traced; filled in by itself.
        followers: the attributes of modules that follow the widths, beyond those that their class says.
        doubtful: number that a module keeps -> its value, and why it stays although it may count removable channels.
        apart: names of the weights that other code than that of their modules reads, too.
        rows: layer -> which rows of its input belong to one example, where that is not one row of each in one call.
        step_failure: what the training step raised on a copy, so that the calls in it were traced one by one.
    """

    groups: Mapping[str, ChannelGroup]
    frozen: Mapping[str, str]
    layers: Mapping[str, Axis]
    shapes: Mapping[str, tuple[int, ...]]
    dense: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str] = frozenset()
    operations: tuple[Operation, ...] = ()
    unseen: tuple[str, ...] = ()
    dense_sizes: Mapping[str, int] = field(default_factory=dict)
    followers: tuple[LinkedAttribute, ...] = ()
    doubtful: Mapping[str, str] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    rows: Mapping[str, RowLayout] = field(default_factory=dict)
    step_failure: str = ""

    def __post_init__(self) -> None:
        if not self.dense_sizes:
            object.__setattr__(self, "dense_sizes", {name: group.size for name, group in self.groups.items()})

    def __repr__(self) -> str:
        channels = sum(group.size for group in self.groups.values())
        return f"ChannelGraph({len(self.groups)} groups of {channels} channels, {len(self.frozen)} layers frozen)"

    def __str__(self) -> str:
        return text_table(repr(self), *self._table())

    def _repr_html_(self) -> str:
        return html_table(repr(self), *self._table())

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, int, str, str]]]:
        """Return columns and rows: every layer, its output channels, the groups they belong to, or why they stay."""
        owners = self.slices_by_axis()
        groups = {layer: dict.fromkeys(name for name, _ in owners.get(axis, ())) for layer, axis in self.layers.items()}
        rows = [(x, self.width(a), ", ".join(groups[x]), self.frozen.get(x, "")) for x, a in self.layers.items()]
        return ("layer", "channels", "group", "stays because"), rows

    def width(self, axis: Axis) -> int:
        """How many entries an axis has now."""
        tensor, dim = axis
        return self.shapes[tensor][dim]

    def normalize(self, remove: Remove) -> dict[str, Tensor]:
        """Check a decision and bring it into canonical form: int64 tensors on the CPU, empty entries left out.

        Raises:
            ValueError: for an unknown group, an index out of range, indices that are not sorted and unique, or a
                group that would lose its last channel.
        """
        if not isinstance(remove, Mapping):
            raise TypeError(f"remove maps group names to indices, such as {{'conv1': [0, 3]}}, got {remove!r}")
        checked = {}
        for name, indices in remove.items():
            if name not in self.groups:
                raise ValueError(f"no channel group {name!r}; this graph has {some(self.groups)}")
            index_R = checked_indices(name, indices, self.groups[name].size)
            if index_R.numel():
                checked[name] = index_R
        return checked

    def keep(self, remove: Remove) -> dict[Axis, Tensor]:
        """For every axis that a decision touches, the entries that stay: sorted int64 indices into the axis."""
        stays: dict[Axis, np.ndarray] = {}  # numpy takes a fraction of torch's time for a few dozen numbers
        for name, index_R in self.normalize(remove).items():
            rows, gone = index_R.numpy(), {}
            for s in self.groups[name].slices:
                if (axis := s.axis) not in stays:
                    stays[axis] = np.ones(self.width(axis), dtype=bool)
                if (key := id(s.index)) not in gone:  # most slices of a group share theirs
                    gone[key] = s.index.numpy()[rows]
                stays[axis][gone[key]] = False
        alike = {mask.tobytes(): mask for mask in stays.values()}  # most axes of a group lose the same entries
        kept = {key: torch.from_numpy(np.flatnonzero(mask)) for key, mask in alike.items()}
        return {axis: kept[mask.tobytes()] for axis, mask in stays.items()}

    def shrink(self, remove: Remove) -> ChannelGraph:
        """The graph of the model after ``remove``, without another trace; this one is left as it is."""
        return self.cut(remove)[1]

    def cut(self, remove: Remove) -> tuple[dict[Axis, Tensor], ChannelGraph]:
        """What ``keep`` and ``shrink`` say; the smaller graph shares every group that a decision does not touch."""
        removed = self.normalize(remove)
        keep = self.keep(removed)
        groups = {name: _shrink(group, removed.get(name), keep) for name, group in self.groups.items()}
        shapes = dict(self.shapes)
        for (tensor, dim), kept in keep.items():
            shapes[tensor] = (*shapes[tensor][:dim], len(kept), *shapes[tensor][dim + 1 :])
        return keep, replace(self, groups=groups, shapes=shapes)

    def sample(self, fraction: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A random legal removal of ``fraction`` of every group, rounded down, never a group's last channel.

        Args:
            fraction: in ``[0, 1]``.
            generator: a CPU generator; torch's default one if None.

        Raises:
            ValueError: if the fraction is outside its range.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
        chosen = {}
        for name, group in self.groups.items():
            count = min(int(group.size * fraction), group.size - 1)
            if count > 0:
                order = torch.randperm(group.size, generator=generator)
                chosen[name] = order[:count].sort().values
        return chosen

    def slices_by_axis(self) -> dict[Axis, list[tuple[str, Slice]]]:
        """Axis -> every group's slice of it, with the group's name."""
        table: dict[Axis, list[tuple[str, Slice]]] = defaultdict(list)
        for name, group in self.groups.items():
            for s in group.slices:
                table[s.axis].append((name, s))
        return dict(table)


def _shrink(group: ChannelGroup, index_R: Tensor | None, keep: Mapping[Axis, Tensor]) -> ChannelGroup:
    """The group without the removed rows, renumbered along every axis that lost entries."""
    if index_R is None and not any(s.axis in keep for s in group.slices):
        return group
    rows = np.delete(np.arange(group.size), [] if index_R is None else index_R.numpy())
    made: dict[tuple[bytes, int], Tensor] = {}  # of most layers the slices list the same entries
    slices = []
    for s in group.slices:
        index, kept = s.index.numpy(), keep.get(s.axis)
        key = index.tobytes(), id(kept)
        if key not in made:
            left = index[rows]
            made[key] = torch.from_numpy(left if kept is None else np.searchsorted(kept.numpy(), left))
        slices.append(Slice(s.tensor, s.dim, made[key], s.role))
    return ChannelGroup(group.name, tuple(slices))


def checked_indices(name: str, indices: Tensor | Iterable[int], size: int) -> Tensor:
    """A decision's indices as int64 on the CPU.

    Args:
        name: the group's, for the message.
        indices: what the user gave.
        size: how many channels the group has.

    Raises:
        ValueError: if they are no whole numbers, out of range, not sorted and unique, or all that the group has.
    """
    index_R = _whole_numbers(name, indices)
    _check_indices(name, index_R, size)
    return index_R


def _whole_numbers(name: str, indices: Tensor | Iterable[int]) -> Tensor:
    """The indices as int64 on the CPU; what is no whole number is refused, not rounded."""
    try:
        given = indices if isinstance(indices, Tensor) else torch.as_tensor(list(indices))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"group {name!r}: indices must be whole numbers, got {indices!r}") from error
    if given.dtype is torch.bool:
        raise ValueError(f"group {name!r}: indices must be whole numbers; of a mask take mask.nonzero().flatten()")
    if given.numel() and (given.is_floating_point() or given.is_complex()):
        raise ValueError(f"group {name!r}: indices must be whole numbers, got {given.dtype}: {given.tolist()}")
    return given.to("cpu", torch.int64)


def _check_indices(name: str, index_R: Tensor, size: int) -> None:
    index = index_R.numpy()
    if index.ndim != 1:
        raise ValueError(f"group {name!r}: indices must be one-dimensional, got shape {index.shape}")
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(
            f"group {name!r} has channels 0 to {size - 1}, got indices from {index.min()} to "
            f"{index.max()}; indices count in the current width"
        )
    if not (index[1:] > index[:-1]).all():
        raise ValueError(f"group {name!r}: indices must be sorted and unique, got {index.tolist()[:16]}")
    if index.size >= size:
        raise ValueError(f"group {name!r} has {size} channels and cannot lose all of them")


def some(names: Iterable[str], most: int = 8) -> str:
    """The first few names, for a message."""
    listed = [repr(n) for n in names]
    tail = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + tail if listed else "none"
