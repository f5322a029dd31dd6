"""What belongs together: channels, the groups they form, and the graph of a whole model.

Plain data, found by a trace and used by everything above: a score is a ``(C,)`` tensor per group name,
a decision is ``remove``, sorted unique indices per group name. Indices always count in the *current* width.

Shape legend: C = channels of a group, M = entries of one tensor dimension that one channel owns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.indices import checked_indices, some

__all__ = ["Axis", "ChannelGraph", "ChannelGroup", "Follower", "Operation", "Remove", "Role", "Slice"]

Axis = tuple[str, int]
"""One dimension of one parameter or buffer: its qualified name and the dimension."""

Remove = Mapping[str, Tensor | Iterable[int]]
"""Group name -> sorted unique int64 indices of the channels to remove, in the group's current width."""


class Role(StrEnum):
    """What a tensor does with a channel."""

    PRODUCER = "producer"
    """Makes the channel: the output dimension of a convolution or linear layer, and its bias."""
    PASS_THROUGH = "pass-through"
    """Acts on the channel and hands it on: batch norm, depthwise convolution, layer scale."""
    CONSUMER = "consumer"
    """Reads the channel: the input dimension of a convolution or linear layer."""
    QUERY = "query"
    """Makes the channel, which is then multiplied with that of a ``KEY`` and summed over, as in an attention."""
    KEY = "key"
    """The other side: zero on either, the product is zero."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of one tensor dimension that a group's channels own.

    Attributes:
        tensor: qualified name of the parameter or buffer; of tied names, the first.
        dim: which of its dimensions.
        index: shape ``(C, M)``, int64, on the CPU: row ``c`` lists the entries along ``dim`` that go with channel
            ``c``. ``M`` is 1 but for flattened maps (positions), tied halves, and the like.
        role: producer, pass-through, consumer, query or key.
    """

    tensor: str
    dim: int
    index: Tensor
    role: Role

    @property
    def axis(self) -> Axis:
        """The tensor's name and the dimension, as one key."""
        return self.tensor, self.dim


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels of one kind: each goes from every slice at once, and any of them can go without the others.

    Attributes:
        name: the first layer that produces them.
        slices: every place where they live; all have the same number of rows.
    """

    name: str
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """How many channels there are now, each of which can be removed on its own."""
        return self.slices[0].index.shape[0]

    def of(self, *roles: Role) -> tuple[Slice, ...]:
        """The slices with one of the given roles, in the order of the trace."""
        return tuple(s for s in self.slices if s.role in roles)

    @property
    def read(self) -> tuple[Slice, ...]:
        """What has to be zero for nothing to read the channels: consumers, and what makes queries and keys."""
        return self.of(Role.CONSUMER, Role.QUERY, Role.KEY)


@dataclass(frozen=True)
class Operation:
    """One contraction or attention kernel of the evaluation path, with its cost when the model was traced.

    Attributes:
        module: qualified name of the innermost module that ran it.
        name: the operator, as torch calls it.
        flops: FLOPs per example (2 per multiply-add) at the traced widths, by ``FlopCounterMode``.
        axes: the tensor dimensions to whose widths the cost is proportional.
    """

    module: str
    name: str
    flops: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Follower:
    """A whole number that a module keeps about its width (``num_heads``), and that follows a tensor's.

    Attributes:
        module: qualified name.
        attribute: of the module.
        axis: the tensor dimension whose width it is proportional to.
        dense: its value when the model was traced.
        width: the width of the axis then, without those of ``minus``; 0 for a number that stays as it is.
        minus: the dimensions whose widths are not counted: a part that no tensor is as wide as is the rest of others.

    An attribute ``sizes[1]`` is the second entry of a list or tuple.
    """

    module: str
    attribute: str
    axis: Axis
    dense: int
    width: int
    minus: tuple[Axis, ...] = ()

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All dimensions that it depends on."""
        return self.axis, *self.minus

    def at(self, width: int) -> int:
        """Its value at another width of the axis, without those of ``minus``.

        Raises:
            ValueError: if that is no whole number.
        """
        if not self.width:
            return self.dense
        value, rest = divmod(self.dense * width, self.width)
        if rest:
            raise ValueError(f"{self.module}.{self.attribute} would be {self.dense * width}/{self.width}")
        return value


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
    followers: tuple[Follower, ...] = ()

    def __post_init__(self) -> None:
        if not self.dense_sizes:
            object.__setattr__(self, "dense_sizes", {name: group.size for name, group in self.groups.items()})

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
            for s in self.groups[name].slices:
                if (axis := s.axis) not in stays:
                    stays[axis] = np.ones(self.width(axis), dtype=bool)
                stays[axis][s.index.numpy()[index_R.numpy()]] = False
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
