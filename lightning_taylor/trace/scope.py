"""What belongs to the network: what is deployed or trained; and what mirrors it, as a momentum teacher does.

Deployed is what ``forward`` runs; all that the step runs, where nobody calls the whole module. Trained is what an
optimizer has and a gradient reached. What is neither is part of the loss: it runs in the trace, and carries no labels.
A mirror is a submodule with the names and shapes of a trained one that is neither: it loses what the original loses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import READ, ChannelGroup, Role, Slice
from lightning_taylor.modules.model_copy import named_tensors
from lightning_taylor.trace.patterns import matches
from lightning_taylor.trace.reasons import Why

__all__ = ["Scope", "equal_parts", "find_mirrors", "find_scope", "narrowed", "with_mirrors"]


@dataclass(frozen=True)
class Scope:
    """Which tensors carry channels of the network.

    Attributes:
        outside: names of the tensors that are part of the loss.
        mirrors: name of a tensor that copies another one -> the name of that one.
        modules: qualified names of the modules whose work is not the network's: it is not counted.
        beyond: those of them that the user left out.
        patterns: what the user chose; empty for everything.
    """

    outside: frozenset[str] = frozenset()
    mirrors: Mapping[str, str] = frozenset()  # type: ignore[assignment]
    modules: frozenset[str] = frozenset()
    beyond: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()

    def names(self, names: Mapping[int, str]) -> dict[int, str]:
        """Return the tensors that carry labels, id -> name; a mirror carries those of its original."""
        return {key: self.mirrors.get(name, name) for key, name in names.items() if name not in self.outside}


def find_scope(
    net: nn.Module, deployed: Iterable[str] | None, trained: Iterable[str] | None, mirrors: Mapping[str, str]
) -> Scope:
    """Tell the network from the loss.

    Args:
        net: the module.
        deployed: names of the tensors that ``forward`` reads; None if nobody calls it.
        trained: names of the parameters that learn; None if nobody knows.
        mirrors: as ``find_mirrors`` gives them.
    """
    network = None if deployed is None or trained is None else {*deployed, *trained}
    outside: set[str] = set()
    modules: set[str] = set()
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        parameters = {prefix + key for key, p in module.named_parameters(recurse=False) if p is not None}
        tensors = parameters | {prefix + key for key, _ in module.named_buffers(recurse=False)}
        if parameters and parameters <= mirrors.keys():
            modules.add(name)
        elif network is not None and parameters and not parameters & network:
            outside |= tensors - mirrors.keys()
            modules.add(name)
    return Scope(frozenset(outside), dict(mirrors), frozenset(modules))


def narrowed(scope: Scope, net: nn.Module, patterns: Sequence[str]) -> Scope:
    """Return the part of a scope that lies in the modules of these names; copies of it stay copies.

    What lies beyond runs in the trace as a loss network does: without labels, so that what it reads keeps its width.

    Raises:
        ValueError: if a pattern matches no module.
    """
    if not patterns:
        return scope
    modules = dict(net.named_modules())
    for pattern in patterns:
        if not any(matches(name, pattern) for name in modules):
            names = ", ".join(name for name, _ in net.named_children()) or "none"
            raise ValueError(f"scope pattern {pattern!r} matches no module; the modules are {names}")
    beyond = {name for name in modules if not any(matches(name, pattern) for pattern in patterns)}
    tensors = {name for name, _ in named_tensors(net) if name.rpartition(".")[0] in beyond}
    mirrors = {name: original for name, original in scope.mirrors.items() if original not in tensors}
    outside = scope.outside | (tensors | (scope.mirrors.keys() - mirrors.keys())) - mirrors.keys()
    return Scope(outside, mirrors, scope.modules | beyond, frozenset(beyond - scope.modules), tuple(patterns))


def equal_parts(net: nn.Module) -> frozenset[tuple[str, str]]:
    """Find the pairs of submodules of one class whose tensors have the same names and values, and are not the same.

    Example:
        >>> import copy
        >>> net = nn.ModuleDict({"student": nn.Linear(2, 3), "head": nn.Linear(2, 3)})
        >>> net["teacher"] = copy.deepcopy(net["student"])
        >>> sorted(equal_parts(net))
        [('student', 'teacher'), ('teacher', 'student')]
    """
    alike: dict[Any, list[tuple[str, dict[str, Tensor]]]] = {}
    for name, tensors in _parts(net).items():
        shapes = tuple((key, t.shape) for key, t in tensors.items())
        alike.setdefault((type(net.get_submodule(name)), shapes), []).append((name, tensors))
    return frozenset(
        (one, other)
        for parts in alike.values()
        for (one, tensors), (other, others) in permutations(parts, 2)
        if _alike(tensors, others) and all(torch.equal(tensors[key], others[key]) for key in tensors)
    )


def find_mirrors(
    net: nn.Module,
    deployed: Iterable[str] | None,
    trained: Iterable[str] | None,
    equal: Collection[tuple[str, str]] | None = None,
) -> dict[str, str]:
    """Find submodules that copy a trained one: the name of each of their tensors -> that of the original.

    Args:
        net: the module.
        deployed: names of the tensors that ``forward`` reads; None if nobody calls it: then a copy has the values of
            its original, too, as it has when training begins.
        trained: names of the parameters that a gradient reached; None if nobody knows: then nothing is taken for a
            copy, since parts of one shape are common.
        equal: as ``equal_parts`` found them when training began; None to compare the values now.

    Example:
        >>> import copy
        >>> net = nn.ModuleDict({"student": nn.Linear(2, 3)})
        >>> net["teacher"] = copy.deepcopy(net["student"])
        >>> find_mirrors(net, None, ["student.weight", "student.bias"])
        {'teacher.weight': 'student.weight', 'teacher.bias': 'student.bias'}
    """
    if trained is None:
        return {}
    learning = set(trained)
    used = learning | set(deployed or ())
    parts = _parts(net)
    equal = equal_parts(net) if equal is None else equal
    mirrors: dict[str, str] = {}
    for name, tensors in parts.items():
        if any(f"{name}.{key}" in used or f"{name}.{key}" in mirrors for key in tensors):
            continue
        original = next(
            (
                other
                for other, others in parts.items()
                if any(f"{other}.{key}" in learning for key in others)
                and (_alike(tensors, others) if deployed is not None else (name, other) in equal)
                and type(net.get_submodule(other)) is type(net.get_submodule(name))
            ),
            None,
        )
        if original is not None:
            mirrors.update({f"{name}.{key}": f"{original}.{key}" for key in tensors})
    return mirrors


def with_mirrors(graph: ChannelGraph, scope: Scope) -> ChannelGraph:
    """Return the graph in which every mirror loses what its original loses, and nothing of the loss is counted."""
    copies: dict[str, list[str]] = {}
    for name, original in scope.mirrors.items():
        copies.setdefault(original, []).append(name)
    groups = {name: _with_copies(group, copies) for name, group in graph.groups.items()}
    frozen = dict(graph.frozen)
    for module in scope.modules:
        mirrored = next((o for n, o in scope.mirrors.items() if n.rpartition(".")[0] == module), None)
        weight = f"{module}.weight".lstrip(".")
        if len(graph.shapes.get(weight, ())) < 2:
            continue
        if mirrored is not None:
            frozen[module] = Why.COPY(original=mirrored.rpartition(".")[0])
        elif module in scope.beyond:
            frozen[module] = Why.OUT_OF_SCOPE(pattern=" ".join(scope.patterns))
        else:
            frozen[module] = Why.OUTSIDE()
    beside = {*scope.outside, *scope.mirrors}
    unseen = tuple(name for name in graph.unseen if name not in scope.modules)
    return replace(graph, groups=groups, frozen=frozen, parameters=graph.parameters - beside, unseen=unseen)


def _with_copies(group: ChannelGroup, copies: Mapping[str, list[str]]) -> ChannelGroup:
    slices = list(group.slices)
    for s in group.slices:
        role = Role.COPY if s.role in READ else Role.PASS_THROUGH
        slices.extend(Slice(name, s.dim, s.index, role) for name in copies.get(s.tensor, ()))
    return ChannelGroup(group.name, tuple(slices)) if len(slices) > len(group.slices) else group


def _parts(net: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the submodules with parameters, and their tensors."""
    return {
        name: dict(named_tensors(module))
        for name, module in net.named_modules()
        if name and next(module.parameters(), None) is not None
    }


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two parts have the same names and shapes, and no tensor in common."""
    if one.keys() != other.keys() or any(one[key] is other[key] for key in one):
        return False
    return all(one[key].shape == other[key].shape for key in one)
