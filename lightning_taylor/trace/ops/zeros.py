"""Zeros that a forward pass makes to begin with: as wide as channels that come later, by a number that a module keeps.

Shape legend: C = channels.
"""

from __future__ import annotations

from torch import Tensor

from lightning_taylor.trace.constraints.attribute_sizes import site_of
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.state import Call

__all__ = [
    "are_zeros",
    "first_state",
]


def are_zeros(call: Call, x: Tensor) -> bool:
    """Whether a tensor is empty, or zeros that the forward pass made: the first state of a recurrent layer."""
    if x.numel() == 0:
        return True
    labels = call.state.labels_of(x)
    made_here = labels is not None and not labels.weight and not any(bool((s != NEUTRAL).any()) for s in labels.slots)
    return made_here and not bool(x.any())


def first_state(call: Call, x: Tensor, dim: int) -> Tensor | None:
    """Labels (C,) of their own for such zeros along one dimension, the same for all that one attribute counts.

    The attribute follows what they are tied to, if the proof by trial finds that it has to. None if a tensor is
    something else, or no attribute of the running module or of one around it says how wide it is.
    """
    size, state = x.shape[dim], call.state
    if size < 2 or x.numel() == 0 or not are_zeros(call, x) or not (holders := state.counting_around(size)):
        return None
    if holders not in state.first_states:
        state.first_states[holders] = state.partition.virtual_axis(size)
    labels_C, module = state.first_states[holders], holders[0][0]
    held = {attribute: size for _, attribute in holders}
    site = site_of(module, (state.kind_of(module), "zeros", *held), labels_C, [labels_C], held)
    if site is not None:
        state.splits.note(site)
    return labels_C
