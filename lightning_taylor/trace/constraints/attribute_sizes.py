"""Numbers that modules keep and by which their code takes channels apart: ``split(x, self.sizes)``, ``x[:, : self.n]``.

Code that counts channels by numbers of its own must find the same share in every part; unless those numbers are
attributes of the running module, which can follow what is left of each part. That an attribute has the right value may
be chance, so the proof decides: where following it fails, the numbers stay and what they cut unevenly is frozen.

Which attribute is meant is a guess with an order: a list or tuple of exactly these sizes is surely it; of whole numbers
with the same value one at a time is tried, those first that are called after a width, for the first and for the last of
the parts that are so large. Two that have the same value never follow together, and one whose name says that it counts
classes, layers or steps never does.

Shape legend: C = channels of the tensor that is taken apart, P = those of one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.types import Axis, LinkedAttribute
from lightning_taylor.trace.labels import compressed
from lightning_taylor.trace.partition import Constraint, LabelPartition

__all__ = [
    "WHOLE",
    "Choice",
    "SplitSite",
    "SplitSites",
    "choices",
    "may_count",
    "names_width",
    "site_of",
]

WHOLE = -1
"""In place of a part's number: the attribute counts all channels."""

_MOST = 8

_WIDTHS = ("dim", "width", "channel", "chs", "hidden", "split", "size", "planes", "feature")

_OTHERS = ("class", "label", "vocab", "epoch", "step", "batch", "seed", "kernel", "stride", "padding", "depth", "layer")

Choice = Mapping[str, int]
"""Attribute -> the part that it counts; none: the numbers stay."""


def may_count(attribute: str) -> bool:
    """Whether an attribute may count channels, heads or groups: not if its name says that it counts something else."""
    return not any(word in attribute.lower() for word in _OTHERS)


def names_width(attribute: str) -> bool:
    """Return whether an attribute is called after a width, and not after a number of heads or groups."""
    return any(word in attribute.lower() for word in _WIDTHS)


@dataclass(eq=False)
class SplitSite:
    """A place where code takes channels apart.

    Attributes:
        module: the one that was running.
        whole: shape (C,), the labels of all channels.
        parts: shape (P,) each, those of every part.
        kind: sites of one kind are run by the same line of code and go by one choice.
        choices: what may follow, the likeliest first.
        sure: whether the first choice is no guess.
    """

    module: str
    whole: np.ndarray
    parts: tuple[np.ndarray, ...]
    kind: Any
    choices: tuple[Choice, ...]
    sure: bool


def choices(sizes: Sequence[int], whole: int, held: Mapping[str, Any]) -> tuple[tuple[Choice, ...], bool]:
    """Return what of a module's attributes may follow, and whether the first is sure.

    Args:
        sizes: how many channels are in each part.
        whole: how many there are.
        held: the module's attributes.
    """
    for name, value in held.items():
        # Others may hold tensors, which compare element by element.
        numbers_only = isinstance(value, list | tuple) and all(type(entry) is int for entry in value)
        if numbers_only and len(sizes) > 1 and list(value) == list(sizes):
            return ({f"{name}[{i}]": i for i in range(len(sizes))},), True
    numbers = {name: value for name, value in held.items() if type(value) is int and value > 1}
    likely = sorted(numbers, key=lambda name: not names_width(name))
    named: list[list[tuple[str, int]]] = []
    for part, size in enumerate(sizes):
        alike = dict.fromkeys((part, len(sizes) - 1 - list(reversed(sizes)).index(size)))
        if size not in sizes[:part] and (pairs := [(n, p) for n in likely if numbers[n] == size for p in alike]):
            named.append(pairs)
    if not named:
        named = [[(name, WHOLE) for name in likely if numbers[name] == whole]]
    return tuple(dict(choice) for choice in islice(product(*named), _MOST) if choice), False


class SplitSites(Constraint):
    """All split sites of a trace, what was decided for each kind, and the parts that were cut.

    Code that takes the first half of the channels takes the first half of what is left, too. That is the same half only
    if whatever goes takes as large a share of the part as of the whole. What is cut unevenly by numbers that follow
    nothing is frozen.
    """

    def __init__(self, partition: LabelPartition) -> None:
        self._partition = partition
        self._all: dict[Any, SplitSite] = {}
        self._turn: dict[Any, int] = {}
        self._cuts: list[tuple[np.ndarray, np.ndarray, str, SplitSite | None]] = []

    def note(self, site: SplitSite) -> SplitSite:
        """Note a site, once however often it is run; the first choice counts at once only if it is sure."""
        key = (site.module, site.kind, site.whole.tobytes(), *(part.tobytes() for part in site.parts))
        self._turn.setdefault(site.kind, 0 if site.sure else -1)
        return self._all.setdefault(key, site)

    def cut(self, part: Tensor, whole: Tensor, reason: str, site: SplitSite | None = None) -> None:
        """Note a part that is taken out of a tensor at positions that the model's code counts.

        Args:
            part: labels of any shape.
            whole: those of the tensor.
            reason: why what is cut unevenly has to stay.
            site: says which attributes may follow instead.
        """
        inside, outside = compressed(part).numpy().ravel(), compressed(whole).numpy().ravel()
        if len(inside) != len(outside):
            self._cuts.append((inside, outside, reason, site))

    def is_linked(self, site: SplitSite) -> bool:
        """Return whether the numbers of a site follow, as far as that was decided."""
        return 0 <= self._turn[site.kind] < len(site.choices) and bool(list(self._linked_at(site)))

    def settle(self) -> None:
        """Freeze what is cut unevenly, unless the numbers that cut it can follow."""
        component = self._partition.components()
        for part, whole, reason, site in self._cuts:
            if site is not None and self.is_linked(site):
                continue
            labels = whole[whole >= 0]
            names, at, in_whole = np.unique(component[labels], return_inverse=True, return_counts=True)
            in_part = np.bincount(np.searchsorted(names, component[part[part >= 0]]), minlength=len(names))
            uneven = in_part * len(whole) != in_whole * len(part)
            if bool(uneven.any()) and not (site is not None and self._link(site)):
                self._partition.freeze(torch.from_numpy(labels[uneven[at]]), reason)

    def try_next(self, labels: np.ndarray, reason: str) -> bool:
        """Make the next choice where these channels are taken apart, and freeze what is cut unevenly by it."""
        for site in self._around(labels):
            if self._turn[site.kind] < len(site.choices):
                self._turn[site.kind] += 1
                self._link(site)
                self.settle()
                return True
        return False

    def affects(self, labels: np.ndarray) -> bool:
        """Return whether another choice may help these channels."""
        return any(self._turn[site.kind] < len(site.choices) for site in self._around(labels))

    def linked_attributes(self) -> Iterator[LinkedAttribute]:
        """Yield the attributes that follow, by the choices that were made."""
        for site in self._all.values():
            if 0 <= self._turn[site.kind] < len(site.choices):
                yield from self._linked_at(site)

    def _link(self, site: SplitSite) -> bool:
        """Let the numbers of a site follow by the first choice that is left and can; return whether there is one."""
        self._turn[site.kind] = max(0, self._turn[site.kind])
        while self._turn[site.kind] < len(site.choices) and not self.is_linked(site):
            self._turn[site.kind] += 1
        return self.is_linked(site)

    def _around(self, labels: np.ndarray) -> list[SplitSite]:
        if not self._all:
            return []
        component = self._partition.components()
        members = component[labels]
        return [site for site in self._all.values() if bool(np.isin(component[site.whole], members).any())]

    def _linked_at(self, site: SplitSite) -> Iterator[LinkedAttribute]:
        """Yield each attribute with the axis that is as wide as its part; none if one that can shrink has no such."""
        linked: list[LinkedAttribute] = []
        component = self._partition.components()
        for attribute, part in site.choices[self._turn[site.kind]].items():
            labels = site.whole if part == WHOLE else site.parts[part]
            axis, minus = self._axis(site.module, component, labels), ()
            if axis is None and (rest := self._rest(site, component, part)):
                axis, *others = rest
                minus = tuple(others)
            if axis is None and self._stay(component, labels):
                continue
            if axis is None:
                return
            linked.append(LinkedAttribute(site.module, attribute, axis, len(labels), len(labels), minus))
        yield from linked

    def _stay(self, component: np.ndarray, labels: np.ndarray) -> bool:
        """Return whether none of these channels can be removed anyway."""
        return bool((self._partition.frozen_components(component)[component[labels]] >= 0).all())

    def _rest(self, site: SplitSite, component: np.ndarray, part: int) -> list[Axis]:
        """Return the axis of the whole, and those of all parts but one; none if they are not known or are not all."""
        others = [p for number, p in enumerate(site.parts) if number != part]
        if part == WHOLE or sum(map(len, site.parts)) != len(site.whole):
            return []
        axes = [self._axis(site.module, component, labels) for labels in (site.whole, *others)]
        return [axis for axis in axes if axis is not None] if None not in axes else []

    def _axis(self, module: str, component: np.ndarray, labels: np.ndarray) -> Axis | None:
        """A dimension of a tensor, the nearest to the module, whose entries go one by one with these labels."""
        tied = component[labels]
        fitting = [axis for axis in self._partition.axes_of_size(len(labels))
                   if np.array_equal(component[self._partition.entries(axis)], tied)]  # fmt: skip
        return min(fitting, key=lambda axis: not axis[0].startswith(f"{module}."), default=None)


def site_of(
    module: str, kind: Any, whole: Tensor, parts: Sequence[Tensor], held: Mapping[str, Any]
) -> SplitSite | None:
    """Make the site where labels (C,) are taken apart into (P,) each; None if no attribute may count them."""
    if bool((whole < 0).any()) or any(len(part) < 2 for part in parts):
        return None
    possible, sure = choices([len(part) for part in parts], len(whole), held)
    if not possible:
        return None
    return SplitSite(module, whole.numpy().copy(), tuple(p.numpy().copy() for p in parts), kind, possible, sure)
