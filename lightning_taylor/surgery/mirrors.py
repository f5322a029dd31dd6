"""Copies of the model that somebody else keeps: averaged weights, shadow dicts. They lose the same channels.

A copy is known by its names and shapes, not by its class: a module or a dict of tensors that has, name by name, the
shapes of the model (or of one part of it). What only has the shapes, in a list without names, cannot be told apart
from other tensors and is reported instead.

Shape legend: K = entries of one dimension that stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_taylor.graph.types import Axis
from lightning_taylor.modules.attributes import Known
from lightning_taylor.modules.resize import followed, owners, resized, touched_tensors
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
    own = {id(module) for module in model.modules()}
    parts = {prefix: _shapes(module) for prefix, module in _prefixed(model)}
    found = []
    for owner, value in _attributes(holders):
        if isinstance(value, AveragedModel):
            value = value.module
        if isinstance(value, nn.Module):
            if id(value) in own:
                continue
            shapes, whole = _shapes(value), True
        elif isinstance(value, MutableMapping) and value and all(isinstance(v, Tensor) for v in value.values()):
            shapes, whole = {str(name): tuple(t.shape) for name, t in value.items()}, False
        else:
            continue
        prefix = next((p for p, part in parts.items() if _mirrors(shapes, part, whole)), None)
        if prefix is not None:
            found.append(Copy(owner, value, prefix))
    return found


def unreachable_copies(model: nn.Module, holders: Mapping[str, object]) -> list[str]:
    """Attributes of other objects that look like a copy of the model's parameters and have no names to tell which."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    shapes, own = [p.shape for p in parameters], {id(p) for p in model.parameters()}
    return [
        owner
        for owner, value in _attributes(holders)
        if isinstance(value, Sequence)
        and len(value) == len(shapes) > 1
        and all(isinstance(t, Tensor) and t.shape == s and id(t) not in own for t, s in zip(value, shapes, strict=True))
    ]


def _attributes(holders: Mapping[str, object], depth: int = 2) -> Iterator[tuple[str, Any]]:
    """Every attribute of the objects, and of plain objects that these keep, with a name for messages."""
    for owner, holder in holders.items():
        for name, value in list(getattr(holder, "__dict__", {}).items()):
            yield f"{owner}.{name}", value
            plain = hasattr(value, "__dict__") and not isinstance(value, nn.Module | type | Tensor)
            if depth > 1 and plain and type(value).__module__.split(".")[0] not in ("lightning", "pytorch_lightning"):
                yield from _attributes({f"{owner}.{name}": value}, depth - 1)


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
