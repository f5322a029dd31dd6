"""What belongs together: channels, the slices of tensors that they own, and the groups that they form.

Plain data, found by a trace and used by everything above: a score is a ``(C,)`` tensor per group name,
a decision is ``remove``, sorted unique indices per group name. Indices always count in the *current* width.

Shape legend: C = channels of a group, M = entries of one tensor dimension that one channel owns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from lightning_taylor.utilities.plain import stored

__all__ = [
    "READ",
    "Axis",
    "ChannelGroup",
    "LinkedAttribute",
    "Operation",
    "Remove",
    "Role",
    "Slice",
]

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
    COPY = "copy"
    """Mirrors what reads the channel, as in a momentum teacher: no loss trains it, and nothing is scored there."""


READ = (Role.CONSUMER, Role.QUERY, Role.KEY, Role.COPY)
"""Roles of the slices that have to be zero for nothing to read a channel."""


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
    # Half as many bytes in a file, which holds little else about its channels.
    index: Tensor = field(metadata=stored(lambda t: t.to(torch.int32), lambda t: t.to("cpu", torch.int64)))
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
        """What has to be zero for nothing to read the channels: consumers and their copies, queries and keys."""
        return self.of(*READ)


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
class LinkedAttribute:
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
