"""From what a trace has learnt to the groups: components of tied labels, sorted into kinds.

A *component* is everything that must go together with one channel. Components that touch the same axes, with as
many entries of each, are channels of one group: any of them can go without the others.

Shape legend: C = channels of a group, M = entries of one axis per channel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Axis, ChannelGroup, LinkedAttribute, Role, Slice
from lightning_taylor.trace.constraints import Constraints
from lightning_taylor.trace.constraints.query_key import QueryKeyPairs
from lightning_taylor.trace.distinct import distinct
from lightning_taylor.trace.partition import VIRTUAL, LabelPartition
from lightning_taylor.trace.reasons import Why

__all__ = [
    "build_graph",
]

_SIDES = (Role.QUERY, Role.KEY)


def build_graph(
    partition: LabelPartition, constraints: Constraints, parameters: frozenset[str], unseen: tuple[str, ...]
) -> ChannelGraph:
    """Build the channel graph of everything that is tied, not frozen, produced and consumed."""
    component = partition.components()
    frozen_by = partition.frozen_components(component)
    member_of_group, groups = _groups(partition, constraints.pairs, component, frozen_by)
    followers = tuple(_linked(partition))
    return ChannelGraph(
        groups=groups,
        frozen=_frozen_layers(partition, component, frozen_by, member_of_group, constraints.grids.held(component)),
        layers=dict(partition.layers),
        shapes=dict(partition.shapes),
        dense=dict(partition.shapes),
        parameters=parameters,
        operations=tuple(partition.operations),
        unseen=unseen,
        followers=followers,
        doubtful=dict(constraints.told.in_doubt({(f.module, f.attribute) for f in followers})),
    )


def _groups(
    partition: LabelPartition, pairs: QueryKeyPairs, component: np.ndarray, frozen_by: np.ndarray
) -> tuple[np.ndarray, dict[str, ChannelGroup]]:
    labels = np.flatnonzero(frozen_by[component] < 0)
    number, index = partition.decode(labels)
    real = np.array([axis[0] != VIRTUAL for axis in partition.axes], dtype=bool)[number]
    labels, number, index = labels[real], number[real], index[real]
    kinds = _kinds(partition, component[labels], number)
    grouped = np.zeros(partition.total, dtype=bool)
    ordered: list[tuple[int, ChannelGroup, np.ndarray]] = []
    contracted = pairs.components(component)
    silenced = {role: pairs.silenced(role) for role in _SIDES if len(contracted)}
    for members in kinds:
        components = component[labels[members]]
        sides = silenced if components[0] in contracted else {}
        slices = _slices(partition, components, number[members], index[members], sides)
        if slices and slices[0].index.shape[0] > 1:
            first, axis = min((partition.order[s.axis], s.axis) for s in slices if s.role is Role.PRODUCER)
            ordered.append((first, ChannelGroup(_layer_of(partition, axis), tuple(slices)), labels[members]))
    groups: dict[str, ChannelGroup] = {}
    for _, group, members in sorted(ordered, key=lambda entry: entry[0]):
        name, copies = group.name, 2
        while name in groups:
            name, copies = f"{group.name}/{copies}", copies + 1
        groups[name] = ChannelGroup(name, group.slices)
        grouped[members] = True
    return grouped, groups


def _kinds(partition: LabelPartition, component: np.ndarray, number: np.ndarray) -> list[np.ndarray]:
    """Positions of the labels of each kind of component: same axes, same number of entries on each.

    Each (axis, count) pair gets a random 64-bit word, a component the sums of its pairs' words under two such
    hashes; that two different kinds agree in both has a chance of about one in 10^30.
    """
    axes = max(len(partition.axes), 1)
    # As single numbers: columns of an array are sorted many times more slowly.
    pair, counts = np.unique(component.astype(np.int64) * axes + number, return_counts=True)
    member, axis = np.divmod(pair, axes)
    words = np.random.default_rng(0).integers(1, 2**62, size=(2, len(partition.axes)), dtype=np.uint64)
    signature = np.zeros((2, partition.total), dtype=np.uint64)
    mixed = words[:, axis] * (2 * counts.astype(np.uint64) + 1)
    for row in range(2):
        np.add.at(signature[row], member, mixed[row] ^ (mixed[row] >> np.uint64(29)))
    one, other = (np.unique(signature[row], return_inverse=True)[1][component] for row in range(2))
    _, kind = np.unique(one * len(signature[0]) + other, return_inverse=True)
    order = np.argsort(kind, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(kind[order])) + 1) if len(order) else []


def _slices(
    partition: LabelPartition,
    component: np.ndarray,
    number: np.ndarray,
    index: np.ndarray,
    silenced: Mapping[Role, np.ndarray],
) -> list[Slice]:
    """Return one slice per axis and role; empty if nothing produces or nothing consumes these channels.

    ``silenced``: of channels that are contracted, what has to be zero for either side to be zero.
    """
    late = len(partition.order)
    axes = {i: partition.axes[i] for i in distinct(number).tolist()}
    axes = dict(sorted(axes.items(), key=lambda entry: partition.order.get(entry[1], late)))
    roles = {role for axis in axes.values() for role in partition.roles.get(axis, {})}
    if Role.PRODUCER not in roles or not (Role.CONSUMER in roles or silenced):
        return []
    rank = _channel_order(partition, axes, component, number, index)
    channels = len(distinct(component))  # each has as many entries on every axis, since all are of one kind
    order = np.lexsort((index, rank[component], number))
    ends = (np.searchsorted(number[order], list(axes), side=side) for side in ("left", "right"))
    slices: list[Slice] = []
    shared: dict[bytes, Tensor] = {}  # of most layers a group has the same entries
    for axis, start, end in zip(axes.values(), *ends, strict=True):
        entries_CM = index[order[start:end]].reshape(channels, -1)
        if (key := entries_CM.tobytes()) not in shared:
            shared[key] = torch.from_numpy(entries_CM)
        index_CM = shared[key]
        roles_here: Iterable[Role] = partition.roles.get(axis, {Role.PASS_THROUGH: None})
        slices.extend(Slice(axis[0], axis[1], index_CM, role) for role in roles_here if role not in _SIDES)
        for role, entries in silenced.items():
            silent_CM = np.isin(partition.entries(axis)[index_CM], entries)
            if len(counts := set(silent_CM.sum(1))) > 1:  # one channel is multiplied more often than another
                return []
            if counts != {0}:
                slices.append(Slice(axis[0], axis[1], index_CM[torch.from_numpy(silent_CM)].view(channels, -1), role))
    return slices


def _channel_order(
    partition: LabelPartition, axes: dict[int, Axis], component: np.ndarray, number: np.ndarray, index: np.ndarray
) -> np.ndarray:
    """Component -> place among the group's channels: by the first index in the first producer."""
    first = next(i for i, axis in axes.items() if Role.PRODUCER in partition.roles.get(axis, {}))
    here = np.flatnonzero(number == first)
    order = here[np.argsort(index[here], kind="stable")]
    members, position = np.unique(component[order], return_index=True)
    rank = np.zeros(partition.total, dtype=np.int64)
    rank[members] = np.argsort(np.argsort(position))
    return rank


def _linked(partition: LabelPartition) -> Iterator[LinkedAttribute]:
    """Yield the attributes that follow widths, each once: what a rule linked, then what constraints decided."""
    every = [
        *(LinkedAttribute(*key, axis, value, partition.shapes[axis[0]][axis[1]])
          for key, (axis, value) in partition.followers.items()),
        *(linked for constraint in partition.constraints for linked in constraint.linked_attributes()),
    ]  # fmt: skip
    first: dict[tuple[str, str], LinkedAttribute] = {}
    for linked in every:
        first.setdefault((linked.module, linked.attribute), linked)
    yield from first.values()


def _layer_of(partition: LabelPartition, axis: Axis) -> str:
    return next((layer for layer, made in partition.layers.items() if made == axis), axis[0])


def _frozen_layers(
    partition: LabelPartition,
    component: np.ndarray,
    frozen_by: np.ndarray,
    grouped: np.ndarray,
    held: Mapping[int, str],
) -> dict[str, str]:
    """Map each layer to why some or all of its output channels must stay; ``held`` as ``Grids.held`` gives it."""
    frozen = {}
    read = _read(partition, component)
    for layer, axis in partition.layers.items():
        entries = partition.entries(axis)
        stay = entries[~grouped[entries]]
        if not len(entries):
            frozen[layer] = Why.SINGLE_CHANNEL()
        elif len(stay):
            counts: dict[str, int] = defaultdict(int)
            tied = len(distinct(component[entries]))
            for number, member in zip(frozen_by[component[stay]], component[stay], strict=True):
                why = partition.reasons[number] if number >= 0 else _why_ungrouped(tied, bool(read[member]))
                counts[held.get(int(member), why) if number < 0 else why] += 1
            parts = [f"{n} of {len(entries)} channels: {why}" for why, n in counts.items()]
            whole = len(counts) == 1 and len(stay) == len(entries)
            frozen[layer] = next(iter(counts)) if whole else "; ".join(parts)
    return frozen


def _read(partition: LabelPartition, component: np.ndarray) -> np.ndarray:
    """Component -> whether anything reads one of its members."""
    read = np.zeros(partition.total, dtype=bool)
    for axis, roles in partition.roles.items():
        if roles.keys() & {Role.CONSUMER, *_SIDES}:
            read[component[partition.entries(axis)]] = True
    return read


def _why_ungrouped(tied: int, read: bool) -> str:
    if not read:
        return Why.UNREAD()
    return Why.ONE_UNIT() if tied == 1 else Why.NO_TWO_ALIKE(tied=tied)
