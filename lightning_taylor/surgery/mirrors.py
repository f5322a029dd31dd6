"""Copies of the model that somebody keeps: averaged weights, shadow dicts and lists. They lose the same channels.

A copy is known by its names and shapes, not by its class: a module or a dict of tensors that has, name by name, the
shapes of the model (or of one part of it); or a list that has the shapes of all its parameters, one after the other. A
tuple cannot be changed, and is reported instead.

Shape legend: K = entries of one dimension that stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_taylor.graph.types import Axis
from lightning_taylor.modules.attributes import Known
from lightning_taylor.modules.resize import followed, owners, resized, touched_tensors
from lightning_taylor.surgery.attributes_kept import kept_by
from lightning_taylor.surgery.transaction import Transaction

__all__ = [
    "Copy",
    "find_copies",
    "unreachable_copies",
]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Copy:
    """Tensors that mirror the model's, name by name.

    Attributes:
        owner: who keeps it, for messages.
        tensors: a module, or a dict from names to tensors.
        prefix: where in the model its names begin: ``""``, or a submodule's name and a dot.
    """

    owner: str
    tensors: nn.Module | MutableMapping[str, Tensor]
    prefix: str = ""

    def cut(self, keep: Mapping[Axis, Tensor], transaction: Transaction, values: Known | None = None) -> None:
        """Keep ``index_K`` of every axis that the copy has too; ``values``: of the model's attributes that follow."""
        mine = {(name.removeprefix(self.prefix), dim): k for (name, dim), k in keep.items() if self._has(name)}
        if isinstance(self.tensors, nn.Module):
            touched = touched_tensors(self.tensors, mine)
            for t in touched:
                transaction.set_storage(t.tensor, resized(t.tensor, t.keep))
            mirrored = {name.removeprefix(self.prefix): own for name, own in (values or {}).items() if self._in(name)}
            for module, local, own in followed(self.tensors, owners(self.tensors, touched), mirrored):
                transaction.follow_shapes(module, local, own)
            return
        by_name: dict[str, dict[int, Tensor]] = {}
        for (name, dim), index_K in mine.items():
            by_name.setdefault(name, {})[dim] = index_K
        new = {name: resized(self.tensors[name], dims) for name, dims in by_name.items()}
        transaction.set_items(self.tensors, new)

    def _in(self, module: str) -> bool:
        return f"{module}.".startswith(self.prefix)

    def _has(self, name: str) -> bool:
        # A dict may leave out buffers; a module has all names of the part that it copies.
        inside = name.startswith(self.prefix)
        return inside and (isinstance(self.tensors, nn.Module) or name.removeprefix(self.prefix) in self.tensors)


def find_copies(model: nn.Module, holders: Mapping[str, object]) -> list[Copy]:
    """The copies of a model (or of a part of it) among the attributes of other objects.

    Args:
        model: the living model, at its present widths.
        holders: name of an object -> the object; a Trainer's callbacks.

    Example:
        >>> class Keeper:
        ...     def __init__(self, net):
        ...         self.average = AveragedModel(net)
        >>> net = nn.Linear(2, 3)
        >>> [(copy.owner, copy.prefix) for copy in find_copies(net, {"Keeper": Keeper(net)})]
        [('Keeper.average', '')]
    """
    parts = {prefix: _shapes(module) for prefix, module in _prefixed(model)}
    copies: dict[int, Copy] = {}  # by what they are: two callbacks may share one
    for owner, value in _kept_beside(model, holders):
        if isinstance(value, Sequence):
            order = _order_of(model, value)
            if order is not None and isinstance(value, MutableSequence):
                copies.setdefault(id(value), Copy(owner, _ByOrder(value, order)))
            continue
        shapes, whole = _named_shapes(value)
        prefix = next((p for p, part in parts.items() if _mirrors(shapes, part, whole)), None)
        if prefix is not None:
            copies.setdefault(id(value), Copy(owner, value, prefix))
    return list(copies.values())


def unreachable_copies(model: nn.Module, holders: Mapping[str, object]) -> list[str]:
    """Attributes of other objects that look like a copy of the model's parameters and cannot be changed: tuples."""
    return [
        owner
        for owner, value in _kept_beside(model, holders)
        if isinstance(value, Sequence) and not isinstance(value, MutableSequence) and _order_of(model, value)
    ]


class _ByOrder(MutableMapping[str, Tensor]):
    """A list of tensors, by the names of the parameters that stand in this order."""

    def __init__(self, tensors: MutableSequence[Tensor], names: Sequence[str]) -> None:
        self._tensors, self._index = tensors, {name: i for i, name in enumerate(names)}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._index[name]]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._tensors[self._index[name]] = tensor

    def __delitem__(self, name: str) -> None:
        raise TypeError("the list keeps its length")

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def _kept_beside(model: nn.Module, holders: Mapping[str, object]) -> Iterator[tuple[str, Any]]:
    """Yield what may be a copy: modules, and containers of tensors of which none is the model's own."""
    modules = {id(module) for module in model.modules()}
    tensors = {id(t) for t in (*model.parameters(), *model.buffers())}
    for owner, value in kept_by({**holders, type(model).__name__: model}):
        value = value.module if isinstance(value, AveragedModel) else value
        if isinstance(value, nn.Module):
            if id(value) not in modules:
                yield owner, value
        elif isinstance(value, MutableMapping | Sequence) and value and not isinstance(value, str | bytes):
            inside = list(value.values() if isinstance(value, MutableMapping) else value)
            if all(isinstance(v, Tensor) and id(v) not in tensors for v in inside):
                yield owner, value


def _order_of(model: nn.Module, value: Sequence[Tensor]) -> list[str] | None:
    """Return the names of the parameters of the model, or of one part, whose shapes these tensors have one by one.

    All of them, or those that are trained; a single tensor tells too little.
    """
    if len(value) < 2:
        return None
    shapes = [t.shape for t in value]
    for prefix, part in _prefixed(model):
        named = list(part.named_parameters(prefix.removesuffix(".")))
        for chosen in (named, [(name, p) for name, p in named if p.requires_grad]):
            if [p.shape for _, p in chosen] == shapes:
                return [name for name, _ in chosen]
    return None


def _named_shapes(value: nn.Module | MutableMapping[str, Tensor]) -> tuple[Shapes, bool]:
    """Return names and shapes, and whether a part has to have exactly these."""
    if isinstance(value, nn.Module):
        return _shapes(value), True
    return {str(name): tuple(t.shape) for name, t in value.items()}, False


def _prefixed(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        yield (f"{name}." if name else ""), module


def _shapes(module: nn.Module) -> Shapes:
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: tuple(t.shape) for name, t in tensors}


def _mirrors(shapes: Shapes, part: Shapes, whole: bool) -> bool:
    """Whether these are the part's tensors, or (of a dict) several of them."""
    if not shapes or (whole and shapes.keys() != part.keys()):
        return False
    return all(part.get(name) == shape for name, shape in shapes.items())
