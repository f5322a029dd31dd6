"""The algebra of label tensors: which channel does each element of a tensor carry?

A label tensor has the shape of the tensor it describes. Where many elements carry the same channel it is expanded
(stride 0), so that a feature map's labels take the memory of its channels, not of its positions; every function
here keeps that. Labels speak of *extent*, not of value: an element carries a channel if it goes when the channel
goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_taylor.trace.partition import NEUTRAL, LabelPartition

__all__ = [
    "Labels",
    "collapse",
    "compressed",
    "is_constant",
    "lies_across",
    "pairs",
    "running",
    "tells_all",
    "united",
    "varies",
    "varying",
]


@dataclass(frozen=True, eq=False)
class Labels:
    """What a traced tensor carries.

    Attributes:
        slots: label tensors of the tensor's shape. An activation has one; a parameter has one per dimension, since
            any of its dimensions may turn out to carry channels.
        weight: whether it is still (a rearrangement of) parameters, so that a contraction with it has roles.
    """

    slots: tuple[Tensor, ...]
    weight: bool = False


def varies(labels: Tensor, dim: int) -> bool:
    """Return whether labels differ along a dimension."""
    if labels.shape[dim] <= 1 or labels.stride(dim) == 0:
        return False
    labels = compressed(labels)
    return not bool((labels == labels.narrow(dim, 0, 1)).all())


def varying(labels: Tensor) -> frozenset[int]:
    """The dimensions along which labels differ, counted from the end (-1 is the last), as broadcasting aligns."""
    return frozenset(d - labels.ndim for d in range(labels.ndim) if varies(labels, d))


def is_constant(labels: Tensor, dims: tuple[int, ...]) -> bool:
    """Return whether labels are the same all along the given dimensions."""
    return not any(varies(labels, d) for d in dims)


def lies_across(labels: Tensor, dim: int) -> bool:
    """Whether channels run along other dimensions only; positions along this one may have none (padding), or all."""
    small = compressed(labels)
    if not small.shape[dim]:  # of no examples, or of no detections
        return True
    last = small.amax(dim, keepdim=True)
    return bool(((small == last) | (small == NEUTRAL)).all()) and len(torch.unique(last[last != NEUTRAL])) != 1


def running(labels: Tensor) -> frozenset[int]:
    """The dimensions along which an activation's channels run.

    Of several, the one with most: tokens of two layers, put beside each other (a class token, those of an image), have
    two labels along the tokens at every channel.
    """
    runs = varying(labels)
    lines = {d: [slice(None) if d == i - labels.ndim else 0 for i in range(labels.ndim)] for d in runs}
    counts = {d: len(torch.unique(labels[tuple(line)])) for d, line in lines.items()}
    return frozenset(d for d in runs if counts[d] == max(counts.values()))


def compressed(*labels: Tensor) -> Tensor:
    """The first label tensor, cut to one entry along each dimension in which *all* the given ones are expanded."""
    first = labels[0]
    for d in range(first.ndim):
        if first.shape[d] > 1 and all(x.stride(d) == 0 for x in labels):
            first = first.narrow(d, 0, 1)
    return first


def collapse(labels: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Labels with the given dimensions, along which they are constant, reduced to one entry or dropped."""
    for d in sorted((d % labels.ndim for d in dims), reverse=True):
        if not labels.shape[d]:  # of no examples: what comes out is made of nothing
            labels = labels.new_full((1,), NEUTRAL).expand([1 if i == d else n for i, n in enumerate(labels.shape)])
        labels = labels.narrow(d, 0, 1)
        if not keepdim:
            labels = labels.squeeze(d)
    return labels


def pairs(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs of labels that two tensors of one shape have at the same place, neutral ones left out."""
    a, b = compressed(one, other).flatten(), compressed(other, one).flatten()
    both = (a != NEUTRAL) & (b != NEUTRAL) & (a != b)
    if not bool(both.any()):
        empty = a.new_empty(0)
        return empty, empty
    a, b = a[both], b[both]
    span = int(torch.maximum(a.max(), b.max())) + 1
    keys = torch.unique(a * span + b)
    return keys // span, keys % span


def united(partition: LabelPartition, labels: Tensor, dim: int) -> Tensor | None:
    """Return the labels along one dimension, shape ``(C,)``, with what lies there at other positions tied to them.

    Tokens that were put beside each other (one that is learnt, those of an image) have channels of several layers.
    None, and nothing is tied, if some entry has no label.
    """
    if bool((compressed(labels) == NEUTRAL).any()):
        return None
    first = collapse(labels, tuple(d for d in range(labels.ndim) if d != dim % labels.ndim), keepdim=True)
    partition.tie(*pairs(labels, first.expand(labels.shape)))
    return first.flatten()


def tells_all(old: Labels, new: Labels) -> bool:
    """Return whether what was written runs along dimensions along which the tensor has labels: those are tied to it."""
    along = {varying(slot) for slot in old.slots if not bool((compressed(slot) == NEUTRAL).any())}
    return len(old.slots) > 1 and {varying(slot) for slot in new.slots} <= along
