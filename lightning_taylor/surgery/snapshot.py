"""A model and its optimizers as they were, to go back to after a removal that went too far."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_taylor.graph.types import LinkedAttribute
from lightning_taylor.modules.attributes import Known, known
from lightning_taylor.surgery.mirrors import Copy
from lightning_taylor.surgery.transaction import Transaction
from lightning_taylor.surgery.wrapped_optimizers import Held, held_by, parameters_of, state_of, unwrapped
from lightning_taylor.utilities.atomic import signals_deferred

__all__ = ["Snapshot"]


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """Values of every tensor and of all optimizer state, on the CPU, in plain types.

    Attributes:
        tensors: qualified name of each parameter and buffer -> its value.
        states: of each optimizer, position of a parameter (over all groups) -> its state.
        copies: of each copy, by its owner, name -> value.
        held: of each optimizer, what it keeps outside of its state, by place -> value.
        kinds: of each optimizer, the name of its class.
    """

    tensors: Mapping[str, Tensor]
    states: Sequence[Mapping[int, Mapping[Any, Any]]]
    copies: Mapping[str, Mapping[str, Tensor]]
    held: Sequence[Mapping[str, Tensor]] = ()
    kinds: Sequence[str] = ()

    @classmethod
    def take(cls, model: nn.Module, optimizers: Iterable[Optimizer] = (), copies: Iterable[Copy] = ()) -> Snapshot:
        """The values now.

        Args:
            model: the living model.
            optimizers: all that hold parameters of it, or Lightning's wrappers of them.
            copies: what mirrors it; see ``find_copies``.

        Example:
            >>> net = nn.Linear(2, 3)
            >>> snapshot = Snapshot.take(net)
            >>> with torch.no_grad():
            ...     _ = net.bias.zero_()
            >>> snapshot.restore(net)
            >>> bool((net.bias == 0).all())
            False
        """
        inner = list(unwrapped(optimizers))
        return cls(
            tensors={name: _kept(t) for name, t in _named(model).items()},
            states=[_states(optimizer) for optimizer in inner],
            copies={c.owner: {name: _kept(t) for name, t in _named(c.tensors).items()} for c in copies},
            held=[{h.name: _kept(h.tensor) for h in held_by(optimizer)} for optimizer in inner],
            kinds=[type(optimizer).__name__ for optimizer in inner],
        )

    def restore(
        self,
        model: nn.Module,
        optimizers: Iterable[Optimizer] = (),
        copies: Iterable[Copy] = (),
        followers: Iterable[LinkedAttribute] = (),
    ) -> None:
        """Give everything its old value and shape back, all or nothing; the tensors stay the same objects.

        Gradients are dropped. Learning rates and schedulers are not touched.

        Args:
            model: the one that ``take`` saw, or another of the same definition.
            optimizers: as for ``take``, in the same order; one that was not there yet, or is of another class, begins
                without state.
            copies: as for ``take``; one that was not there yet gets the model's values.
            followers: as ``ChannelGraph.followers``.
        """
        inner = list(unwrapped(optimizers))
        held = [list(held_by(optimizer)) for optimizer in inner]  # while shapes still tell what belongs together
        with torch.inference_mode(False), torch.no_grad(), signals_deferred(), Transaction() as transaction:
            attributes = known(followers, {name: tuple(t.shape) for name, t in self.tensors.items()})
            _put_back(model, self.tensors, transaction, attributes)
            for c in copies:
                own = self.copies.get(c.owner)
                values = own or {name: self.tensors[c.prefix + name] for name in _named(c.tensors)}
                _put_back(c.tensors, values, transaction, _inside(attributes, c.prefix))
            for place, optimizer in enumerate(inner):
                _restore_states(optimizer, self._at(place, self.states, optimizer), transaction)
                _restore_held(held[place], self._at(place, self.held, optimizer), transaction)

    def _at(self, place: int, kept: Sequence[Mapping[Any, Any]], optimizer: Optimizer) -> Mapping[Any, Any]:
        """Return what was kept of an optimizer; nothing if it was not there yet, or another one was."""
        if place >= len(kept) or (self.kinds and self.kinds[place] != type(optimizer).__name__):
            return {}
        return kept[place]


def _named(tensors: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(tensors, nn.Module):
        return dict(chain(tensors.named_parameters(), tensors.named_buffers()))
    return dict(tensors)


def _kept(tensor: Tensor) -> Tensor:
    # A copy even on the CPU, and with its strides: channels_last has to come back too.
    return torch.empty_like(tensor, device="cpu").copy_(tensor.detach()).detach()


def _states(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    return {
        position: {
            key: _kept(v) if isinstance(v, Tensor) else copy.deepcopy(v) for key, v in state_of(optimizer)[p].items()
        }
        for position, p in enumerate(parameters_of(optimizer))
        if isinstance(state_of(optimizer).get(p), Mapping)
    }


def _inside(attributes: Known, prefix: str) -> Known:
    """What is known of the modules in a part of the model, by their names there."""
    return {n.removeprefix(prefix): own for n, own in attributes.items() if f"{n}.".startswith(prefix)}


def _put_back(
    tensors: nn.Module | Any, values: Mapping[str, Tensor], transaction: Transaction, attributes: Known
) -> None:
    living = _named(tensors)
    new = {name: torch.empty_like(value, device=living[name].device).copy_(value) for name, value in values.items()}
    if not isinstance(tensors, nn.Module):
        transaction.set_items(tensors, new)
        return
    for name, value in new.items():
        transaction.set_storage(living[name], value)
    for name, module in tensors.named_modules():
        transaction.follow_shapes(module, {}, attributes.get(name))


def _restore_states(optimizer: Optimizer, states: Mapping[int, Mapping[str, Any]], transaction: Transaction) -> None:
    if isinstance(optimizer, LBFGS):
        transaction.set_attribute(optimizer, "_numel_cache", None)  # of the widths before
    for position, p in enumerate(parameters_of(optimizer)):
        state, old = state_of(optimizer).setdefault(p, {}), states.get(position, {})
        if not isinstance(state, MutableMapping):
            continue
        # Not the parameter's device: a step count may live on the CPU beside moments that do not.
        devices = {key: value.device for key, value in state.items() if isinstance(value, Tensor)}
        transaction.clear(state)
        for key, value in old.items():
            if isinstance(value, Tensor):
                value = torch.empty_like(value, device=devices.get(key, p.device)).copy_(value)
            transaction.add_item(state, key, copy.deepcopy(value))


def _restore_held(now: Iterable[Held], old: Mapping[str, Tensor], transaction: Transaction) -> None:
    for held in now:
        # What was not there yet is nearly always a slow copy of the parameter, which has its old value by now.
        value = old.get(held.name, held.parameter.detach())
        transaction.set_storage(held.tensor, torch.empty_like(value, device=held.tensor.device).copy_(value))
