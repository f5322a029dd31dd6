"""Rules for Fourier transforms over positions, and for the complex numbers that they make.

Shape legend: as the tensors that the labels describe.
"""

from __future__ import annotations

from lightning_taylor.trace.labels import Labels
from lightning_taylor.trace.ops.pointwise import combine, freeze_all
from lightning_taylor.trace.ops.reduction import pass_across
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = ["as_complex", "as_real", "fourier"]


def fourier(call: Call) -> Labels | None:
    """A transform over positions: each channel on its own, with another number of positions perhaps."""
    return pass_across(call, tuple(call.get("dim")), call.out.shape)


def as_real(call: Call) -> Labels | None:
    """A complex number as two real ones along a new last dimension: both are of its channel."""
    labels = call.state.labels_of(call.operands[0])
    assert labels is not None
    slots = tuple(slot.unsqueeze(-1).expand(call.out.shape) for slot in labels.slots)
    return Labels(slots, labels.weight)


def as_complex(call: Call) -> Labels | None:
    """Two real numbers as a complex one: what they carry goes together."""
    labels = call.state.labels_of(call.operands[0])
    if labels is None or len(labels.slots) != 1:
        return freeze_all(call, Why.MIXED(call.where))
    real, imaginary = labels.slots[0].unbind(-1)
    return Labels((combine(call, real, imaginary, call.out.shape),), labels.weight)
