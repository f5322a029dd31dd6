"""What an optimizer remembers about a parameter loses the same channels as the parameter.

One rule serves every elementwise optimizer and the factored ones, whatever their state is called: it goes by the
axes of the state tensor, not by its name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_taylor.errors import OptimizerStateError
from lightning_taylor.modules.resize import Touched, resized
from lightning_taylor.surgery.transaction import Transaction
from lightning_taylor.surgery.wrapped_optimizers import Held, held_by, state_of

__all__ = ["HeldChange", "HistoryReset", "StateChange", "check_state", "prepare_state"]

_ANOTHER = "use an optimizer"

_LeftOut = Mapping[str, set[int]]


@dataclass(frozen=True, eq=False)
class StateChange:
    """What will become of one living state dict.

    Attributes:
        state: the optimizer's own dict for one parameter.
        new: key -> the cut tensor, for the keys that change; None to forget the whole state, so that the optimizer
            starts it anew at the next step.
    """

    state: MutableMapping[str, Any]
    new: Mapping[str, Tensor] | None

    def commit(self, transaction: Transaction) -> None:
        """Make the change."""
        if self.new is None:
            transaction.clear(self.state)
        else:
            transaction.set_items(self.state, self.new)


@dataclass(frozen=True, eq=False)
class HeldChange:
    """A tensor that an optimizer keeps of a parameter outside of its state; it stays the same object.

    Attributes:
        tensor: the living one.
        new: what it will hold.
    """

    tensor: Tensor
    new: Tensor

    def commit(self, transaction: Transaction) -> None:
        """Make the change."""
        transaction.set_storage(self.tensor, self.new)


@dataclass(frozen=True, eq=False)
class HistoryReset:
    """``LBFGS`` starts anew: its directions and gradients are flat vectors over all parameters, with their length."""

    optimizer: LBFGS

    def commit(self, transaction: Transaction) -> None:
        """Make the change."""
        for state in self.optimizer.state.values():
            transaction.clear(state)
        transaction.set_attribute(self.optimizer, "_numel_cache", None)


def prepare_state(
    optimizer: Optimizer, touched: Sequence[Touched], *, drop_unknown: bool
) -> Sequence[StateChange | HeldChange | HistoryReset]:
    """Cut copies of the state of every touched parameter; nothing living changes yet.

    The rule: a state value with at most one element is left (a step count); one with the parameter's number of
    dimensions, each as long as the parameter's or 1, is cut where it is as long (a moment, a row or column of
    second moments); so is one that leaves out a single dimension (the same rows and columns, squeezed); anything else
    follows in no known way. A key is judged over all parameters of the optimizer: the (8, 8) preconditioner of an
    (8, 8) weight is given away by the (8, 8) preconditioner of an (8, 4) one, and which dimension is left out of an
    (8, 8) weight is what is left out of an (8, 4) one.

    ``LBFGS`` forgets everything if one of its parameters is touched.

    Args:
        optimizer: a torch optimizer, without wrappers; read only.
        touched: the model's tensors that are cut, still whole.
        drop_unknown: forget all state of a parameter that has unknown state, instead of raising.

    Raises:
        OptimizerStateError: for state that follows its parameter in no known way.
    """
    if isinstance(optimizer, LBFGS):
        cut = {id(t.tensor) for t in touched}
        mine = any(id(p) in cut for group in optimizer.param_groups for p in group["params"])
        return [HistoryReset(optimizer)] if mine else []
    left_out = _left_out(optimizer)
    # `get`, since `state` is a defaultdict: to ask by `[]` is to write.
    states = ((t, state_of(optimizer).get(t.tensor)) for t in touched)
    changes = [_prepare(optimizer, t, s, left_out, drop_unknown) for t, s in states if isinstance(s, MutableMapping)]
    by_parameter = {id(t.tensor): t for t in touched}
    held = ((h, by_parameter.get(id(h.parameter))) for h in held_by(optimizer))
    return [*changes, *(_prepare_held(optimizer, h, t) for h, t in held if t and h.tensor.numel() > 1)]


def check_state(optimizer: Optimizer, names: Mapping[Tensor, str]) -> None:
    """Check that the state of these parameters, as far as there is any, can be cut; nothing is copied or changed.

    Args:
        optimizer: a torch optimizer, without wrappers.
        names: parameters that may lose channels, with their names in the model.

    Raises:
        OptimizerStateError: for state that follows its parameter in no known way.
    """
    if isinstance(optimizer, LBFGS):
        return
    left_out = _left_out(optimizer)
    for parameter, state in state_of(optimizer).items():
        if isinstance(state, Mapping) and isinstance(parameter, Tensor) and parameter in names:
            everywhere = {dim: torch.empty(0) for dim in range(parameter.ndim)}
            strange = _strange(state, Touched(parameter, names[parameter], (names[parameter],), everywhere), left_out)
            if strange is not None:
                raise _unknown_state(optimizer, strange, state[strange], parameter, names[parameter], _ANOTHER)
    for held in held_by(optimizer):
        if held.parameter in names and not _follows(held.tensor, held.parameter.shape):
            raise _unknown_state(optimizer, held.name, held.tensor, held.parameter, names[held.parameter], _ANOTHER)


def _prepare(
    optimizer: Optimizer, t: Touched, state: MutableMapping[str, Any], left_out: _LeftOut, drop_unknown: bool
) -> StateChange:
    strange = _strange(state, t, left_out)
    if strange is None:
        return StateChange(state, dict(_cut(state, t, left_out)))
    if drop_unknown:
        return StateChange(state, None)
    way_out = f"pass drop_unknown_state=True to forget what it knows about such parameters, or {_ANOTHER}"
    raise _unknown_state(optimizer, strange, state[strange], t.tensor, t.name, way_out)


def _prepare_held(optimizer: Optimizer, held: Held, t: Touched) -> HeldChange:
    if not _follows(held.tensor, t.tensor.shape):
        raise _unknown_state(optimizer, held.name, held.tensor, t.tensor, t.name, _ANOTHER)
    return HeldChange(held.tensor, resized(held.tensor, _axes(held.tensor, t)))


def _axes(value: Tensor, t: Touched, left_out: int | None = None) -> dict[int, Tensor]:
    """Map the dimensions of a state value that are as long as the parameter's to the entries that stay."""
    dims = [dim for dim in range(t.tensor.ndim) if dim != left_out]
    places = {dim: place for place, dim in enumerate(dims)}
    return {places[dim]: index_K for dim, index_K in t.keep.items() if dim in places and value.shape[places[dim]] != 1}


def _unknown_state(
    optimizer: Optimizer, state: str, value: object, parameter: Tensor, name: str, way_out: str
) -> OptimizerStateError:
    return OptimizerStateError(
        f"{type(optimizer).__name__} keeps {state!r} ({_described(value)}) for parameter {name!r} of shape "
        f"{tuple(parameter.shape)}, and it is not known how that follows the parameter's channels; {way_out} whose "
        "state has the shape of its parameter, such as SGD or AdamW"
    )


def _cut(state: Mapping[str, Any], t: Touched, left_out: _LeftOut) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.numel() <= 1:
            continue
        if keep := _axes(value, t, _dimension(value, t.tensor, left_out[key])):
            yield key, resized(value, keep)


def _strange(state: Mapping[str, Any], t: Touched, left_out: _LeftOut) -> str | None:
    """Return a key that follows in no known way, or in several that differ in what is cut."""
    for key, value in state.items():
        if not _has_entries(value):
            continue
        possible = left_out[key]
        if not possible:
            return key
        if len(possible) > 1 and isinstance(value, Tensor):
            ways = [_axes(value, t, _dimension(value, t.tensor, {way})) for way in possible]
            if any(
                {dim: id(index) for dim, index in way.items()} != {d: id(i) for d, i in ways[0].items()} for way in ways
            ):
                return key
    return None


def _dimension(value: Tensor, parameter: Tensor, possible: set[int]) -> int | None:
    """Return the dimension of the parameter that a value leaves out, counted from the front; None for none."""
    return parameter.ndim + min(possible) if value.ndim < parameter.ndim else None


def _left_out(optimizer: Optimizer) -> _LeftOut:
    """Map each state key to the dimensions, counted from the end, that its values may leave out; 0 stands for none.

    A vector's value may well be whole where those of matrices leave one out. One that fits in no way spoils its key.
    """
    fitting: dict[str, list[set[int]]] = defaultdict(list)
    for parameter, state in state_of(optimizer).items():
        if isinstance(parameter, Tensor) and isinstance(state, Mapping):
            for key, value in state.items():
                if _has_entries(value):
                    fitting[key].append(_fitting(value, parameter.shape))
    return {key: set.intersection(*([ways for ways in fits if ways != {0}] or fits)) for key, fits in fitting.items()}


def _follows(value: Tensor, shape: torch.Size) -> bool:
    return value.numel() <= 1 or _fitting(value, shape) == {0}


def _fitting(value: object, shape: torch.Size) -> set[int]:
    """Return the dimensions that a value may leave out, {0} for none; nothing if it follows in no way."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return set()
    if value.ndim == len(shape):
        return {0} if all(n in (size, 1) for n, size in zip(value.shape, shape, strict=True)) else set()
    if value.ndim != len(shape) - 1:
        return set()
    return {dim - len(shape) for dim in range(len(shape)) if value.shape == shape[:dim] + shape[dim + 1 :]}


def _has_entries(value: object) -> bool:
    """Whether a tensor of more than one element lies anywhere in nested containers."""
    if isinstance(value, Tensor):
        return value.numel() > 1
    if isinstance(value, Mapping):
        return any(_has_entries(v) for v in value.values())
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and any(map(_has_entries, value))


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
