"""What an optimizer remembers about a parameter loses the same channels as the parameter.

One rule serves every elementwise optimizer and the factored ones, whatever their state is called: it goes by the
axes of the state tensor, not by its name.
"""

from __future__ import annotations

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

__all__ = ["HeldChange", "HistoryReset", "StateChange", "prepare_state"]


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
    second moments); anything else follows in no known way. A key is judged over all parameters of the optimizer: the
    (8, 8) preconditioner of an (8, 8) weight is given away by the (8, 8) preconditioner of an (8, 4) one.

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
    unknown = _unknown_keys(optimizer)
    # `get`, since `state` is a defaultdict: to ask by `[]` is to write.
    states = ((t, state_of(optimizer).get(t.tensor)) for t in touched)
    changes = [_prepare(optimizer, t, s, unknown, drop_unknown) for t, s in states if isinstance(s, MutableMapping)]
    by_parameter = {id(t.tensor): t for t in touched}
    held = ((h, by_parameter.get(id(h.parameter))) for h in held_by(optimizer))
    return [*changes, *(_prepare_held(optimizer, h, t) for h, t in held if t and h.tensor.numel() > 1)]


def _prepare(
    optimizer: Optimizer, t: Touched, state: MutableMapping[str, Any], unknown: set[str], drop_unknown: bool
) -> StateChange:
    strange = next((key for key, value in state.items() if key in unknown and _has_entries(value)), None)
    if strange is None:
        return StateChange(state, dict(_cut(state, t)))
    if drop_unknown:
        return StateChange(state, None)
    way_out = "pass drop_unknown_state=True to forget what it knows about such parameters, or use an optimizer"
    raise _unknown_state(optimizer, strange, state[strange], t, way_out)


def _prepare_held(optimizer: Optimizer, held: Held, t: Touched) -> HeldChange:
    if not _follows(held.tensor, t.tensor.shape):
        raise _unknown_state(optimizer, held.name, held.tensor, t, "use an optimizer")
    return HeldChange(held.tensor, resized(held.tensor, _axes(held.tensor, t)))


def _axes(value: Tensor, t: Touched) -> dict[int, Tensor]:
    return {dim: index_K for dim, index_K in t.keep.items() if value.shape[dim] != 1}


def _unknown_state(optimizer: Optimizer, name: str, value: object, t: Touched, way_out: str) -> OptimizerStateError:
    return OptimizerStateError(
        f"{type(optimizer).__name__} keeps {name!r} ({_described(value)}) for parameter {t.name!r} of shape "
        f"{tuple(t.tensor.shape)}, and it is not known how that follows the parameter's channels; {way_out} whose "
        "state has the shape of its parameter"
    )


def _cut(state: Mapping[str, Any], t: Touched) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, Tensor) and value.numel() > 1 and (keep := _axes(value, t)):
            yield key, resized(value, keep)


def _unknown_keys(optimizer: Optimizer) -> set[str]:
    """The state keys that do not follow the axes of every parameter that has them."""
    return {
        key
        for parameter, state in state_of(optimizer).items()
        if isinstance(parameter, Tensor) and isinstance(state, Mapping)
        for key, value in state.items()
        if not _follows(value, parameter.shape)
    }


def _follows(value: object, shape: torch.Size) -> bool:
    if not isinstance(value, Tensor) or value.numel() <= 1:
        return not _has_entries(value)
    if value.layout is not torch.strided or value.shape == shape:  # nearly always: spare the walk over the axes
        return value.layout is torch.strided
    return value.ndim == len(shape) and all(n in (size, 1) for n, size in zip(value.shape, shape, strict=True))


def _has_entries(value: object) -> bool:
    """Whether a tensor of more than one element lies anywhere in nested containers."""
    if isinstance(value, Tensor):
        return value.numel() > 1
    if isinstance(value, Mapping):
        return any(_has_entries(v) for v in value.values())
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and any(map(_has_entries, value))


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
