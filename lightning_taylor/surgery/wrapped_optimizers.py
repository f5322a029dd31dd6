"""Optimizers inside of optimizers, and what they keep of a parameter beside the state that torch knows.

Lookahead, SAM, schedules without a schedule: each wraps another optimizer under an attribute of its own choice and
may keep slow copies in a dict, in a list beside the parameters, or in the groups. A wrapper is known by what it
holds, not by names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_taylor.errors import OptimizerStateError

__all__ = ["Held", "check_optimizers", "held_by", "parameters_of", "state_of", "unwrapped"]

_SHARDED = "every rank keeps the state of its own share of the parameters, which a removal would have to deal out anew"
_FACTORS = "it keeps factor matrices that mix the channels of a parameter and cannot be cut with them"
_BLOCKS = "it keeps its state in blocks of entries that do not end where channels do"

_IMPOSSIBLE: Mapping[str, str] = {
    "ZeroRedundancyOptimizer": _SHARDED,
    **dict.fromkeys(
        ("Shampoo", "ScalableShampoo", "DistributedShampoo", "SOAP", "KFAC", "KFACOptimizer", "Kron", "SPlus"), _FACTORS
    ),
    **dict.fromkeys(("GaLore", "GaLoreAdamW", "GaLoreAdafactor"), _FACTORS),
    **dict.fromkeys(("Optimizer8bit", "AdamW8bit", "Adam8bit", "_AdamBase8bit"), _BLOCKS),
}
"""Name of a class, anywhere among the bases of an optimizer -> why its parameters cannot lose channels."""


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that belongs to a parameter and lies outside of the state's dicts.

    Attributes:
        name: of the place, the same whenever the optimizer is asked.
        parameter: whose channels it has.
        tensor: the living one.
    """

    name: str
    parameter: Tensor
    tensor: Tensor


def check_optimizers(optimizers: Iterable[Optimizer]) -> None:
    """Refuse optimizers that are known to keep what no channel can be taken from, before any training.

    Raises:
        OptimizerStateError: naming the class and the way out.
    """
    for optimizer in unwrapped(optimizers):
        for base in type(optimizer).__mro__:
            if base.__name__ in _IMPOSSIBLE:
                raise OptimizerStateError(
                    f"{type(optimizer).__name__} cannot follow a pruning: {_IMPOSSIBLE[base.__name__]}. Use an "
                    "optimizer whose state has the shape of its parameter, such as SGD, AdamW or Adafactor, on every "
                    "rank in full"
                )


def unwrapped(optimizers: Iterable[Optimizer]) -> Iterator[Optimizer]:
    """Yield every optimizer that holds state of its own, once, wrapped ones before their wrappers.

    What an optimizer wraps is any optimizer among its attributes, whatever their names, and in lists and dicts there.
    Lightning's wrapper shares the state of the one that it wraps, so only the wrapped one comes.
    """
    if isinstance(optimizers, Optimizer) or not isinstance(optimizers, Iterable):
        raise TypeError(f"optimizers takes a list of optimizers, got {type(optimizers).__name__}; write [optimizer]")
    states: set[int] = set()
    seen: set[int] = set()
    for outermost in optimizers:
        if not _is_optimizer(outermost):
            raise ValueError(f"optimizers must hold torch optimizers, got {type(outermost).__name__}")
        for optimizer in _innermost_first(outermost, seen):
            key = id(getattr(optimizer, "state", optimizer))
            if key not in states:
                states.add(key)
                yield optimizer


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """List the parameters of all groups, in order."""
    return [p for group in _groups(optimizer) for p in group["params"]]


def state_of(optimizer: Optimizer) -> MutableMapping[Any, Any]:
    """Get the state of an optimizer, which a wrapper that never called torch's constructor may lack."""
    return getattr(optimizer, "state", {})


def held_by(optimizer: Optimizer) -> Iterator[Held]:
    """Yield what an optimizer keeps of its parameters outside of the dicts in ``state``.

    That is: tensors in dicts whose keys are parameters, and tensors in a list that runs beside the parameters (of one
    group, of all, or a list of such lists) with the shapes of all of them.
    """
    places = {id(p): n for n, p in enumerate(parameters_of(optimizer))}
    for key, value in state_of(optimizer).items():
        if id(key) not in places:
            yield from _keyed("state", {key: value}, places, optimizer)
        elif isinstance(value, Tensor):
            yield Held(f"state[{places[id(key)]}]", key, value)
    for name, value in vars(optimizer).items():
        if name in ("state", "param_groups", "defaults"):
            continue
        if isinstance(value, Mapping):
            yield from _keyed(name, value, places, optimizer)
        else:
            yield from _beside(name, value, optimizer)
    for n, group in enumerate(_groups(optimizer)):
        for name, value in group.items():
            if name != "params":
                yield from _parallel(f"param_groups[{n}].{name}", value, group["params"])


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return getattr(optimizer, "param_groups", [])


def _is_optimizer(value: object) -> bool:
    """Return whether this is an optimizer, of torch's class or of the form that Lightning asks for."""
    if isinstance(value, Optimizer):
        return True
    groups = getattr(value, "param_groups", None) if callable(getattr(type(value), "step", None)) else None
    return isinstance(groups, list) and isinstance(getattr(value, "state", None), Mapping)


def _innermost_first(optimizer: Optimizer, seen: set[int]) -> Iterator[Optimizer]:
    if id(optimizer) in seen:
        return
    seen.add(id(optimizer))
    for value in vars(optimizer).values():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        for one in inner:
            if _is_optimizer(one):
                yield from _innermost_first(one, seen)
    yield optimizer


def _keyed(name: str, value: Mapping[Any, Any], places: Mapping[int, int], optimizer: Optimizer) -> Iterator[Held]:
    for key, kept in value.items():
        if id(key) in places:
            entries = kept if isinstance(kept, Mapping) else {"": kept}
            for entry, tensor in entries.items():
                if isinstance(tensor, Tensor) and tensor is not key:
                    yield Held(f"{name}[{places[id(key)]}].{entry}", key, tensor)
        elif isinstance(kept, Mapping) and isinstance(key, str):
            yield from _keyed(f"{name}.{key}", kept, places, optimizer)
        elif isinstance(key, str):
            yield from _beside(f"{name}.{key}", kept, optimizer)


def _beside(name: str, value: Any, optimizer: Optimizer) -> Iterator[Held]:
    groups = [group["params"] for group in _groups(optimizer)]
    if isinstance(value, list | tuple) and len(value) == len(groups) and all(isinstance(v, list) for v in value):
        for n, (inner, parameters) in enumerate(zip(value, groups, strict=True)):
            yield from _parallel(f"{name}[{n}]", inner, parameters)
    else:
        yield from _parallel(name, value, parameters_of(optimizer))


def _parallel(name: str, value: Any, parameters: list[Tensor]) -> Iterator[Held]:
    if not isinstance(value, list | tuple) or len(value) != len(parameters):
        return
    pairs = list(zip(value, parameters, strict=True))
    if all(isinstance(tensor, Tensor) and tensor.shape == p.shape and tensor is not p for tensor, p in pairs):
        yield from (Held(f"{name}[{n}]", p, tensor) for n, (tensor, p) in enumerate(pairs))
