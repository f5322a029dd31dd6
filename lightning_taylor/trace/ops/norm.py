"""Rules for normalisations: exact where statistics are a channel's own, or a group's that goes whole.

Where they run over the channels, those can go only if the user allows it: see ``constraints.norm_statistics``.

Shape legend: O = output channels, I = input channels, C = channels, G = groups of channels.
"""

from __future__ import annotations

from torch import Tensor

from lightning_taylor.graph.types import Role
from lightning_taylor.trace.labels import Labels, compressed, is_constant, pairs, varying
from lightning_taylor.trace.ops.layer import read_channels, tie_along, vector_of
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "batch_norm",
    "group_norm",
    "normalized_over",
    "weight_norm",
]


def batch_norm(call: Call) -> list[Labels | None]:
    """Each channel by its own statistics: weight, bias and running statistics go with the channel."""
    given = call.labels("input")
    x, _ = read_channels(call, given)
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = [v.slots[0] for name in names if (v := call.labels(name)) is not None]
    for vector_C in vectors:
        if x is None:
            call.state.partition.freeze(vector_C, Why.NORM_WITHOUT_CHANNELS(call.where))
        else:
            tie_along(call, x.slots[0], vector_C, dim=1)
            call.state.partition.assign(vector_C, Role.PASS_THROUGH)
    return [given]


def group_norm(call: Call) -> list[Labels | None]:
    """Each group of channels by its own statistics: whole groups can go."""
    given, groups = call.labels("input"), call.get("group")
    x, _ = read_channels(call, given)
    vectors = [v.slots[0] for name in ("weight", "bias") if (v := call.labels(name)) is not None]
    x_C = None if x is None or varying(x.slots[0]) != {1 - call.get("input").ndim} else vector_of(x.slots[0], 1)
    if x_C is None or groups == 1 or bool((x_C == NEUTRAL).any()):
        return normalized_over(call)
    units = [0, 1] if call.state.partition.options.allow_inexact_norms else [0]
    grid = call.state.grids.split(x_C.view(groups, -1), call.where, call.place, units)
    if call.state.holds("num_groups", groups):
        grid.size_attributes[call.state.module, "num_groups", (0,)] = groups
        grid.counted = next(iter(call.state.partition.real_axes(vectors[0])), None) if vectors else None
    for vector_C in vectors:
        tie_along(call, x_C, vector_C, dim=0)
        call.state.partition.assign(vector_C, Role.PASS_THROUGH)
    return [given]


def normalized_over(call: Call) -> list[Labels | None]:
    """Exact only while no channel lies in the dimensions that are averaged over."""
    x, ndim = call.labels("input"), call.get("input").ndim
    over = ndim - 1 if call.name == "native_group_norm" else len(call.get("normalized_shape"))
    dims = tuple(range(-over, 0))
    slots = [slot for slot in (x.slots if x is not None else ()) if not is_constant(slot, dims)]
    if call.state.partition.options.allow_inexact_norms and _goes_along(call, slots, 1 if over == ndim - 1 > 1 else -1):
        return [x]
    for slot in slots:
        reason = Why.STATISTICS(call.where)
        call.state.partition.freeze(slot, reason)
    for name in ("weight", "bias"):
        call.state.freeze(call.labels(name), Why.SCALES_NORM(call.where))
    return [x]


def _goes_along(call: Call, slots: list[Tensor], dim: int) -> bool:
    """Tie a normalisation's weight to the channels that it averages over; without a weight nobody could tell them."""
    vectors = [v.slots[0] for name in ("weight", "bias") if (v := call.labels(name)) is not None]
    ndim = call.get("input").ndim
    if len(slots) != 1 or not vectors or any(v.ndim != 1 for v in vectors):
        return False
    (x,) = slots
    if dim % ndim - ndim not in varying(x) or bool((compressed(x) == NEUTRAL).any()):
        return False
    for vector_C in vectors:
        tie_along(call, x, vector_C, dim % ndim)
        call.state.partition.assign(vector_C, Role.PASS_THROUGH)
    return True


def weight_norm(call: Call) -> list[Labels | None]:
    """A parameter with a length of its own along one dimension: these entries can go, what is averaged over stays."""
    values, lengths, dim = call.labels("v"), call.labels("g"), call.get("dim") % call.get("v").ndim
    along = dim - call.get("v").ndim
    for slot in values.slots if values is not None else ():
        if along not in varying(slot):
            call.state.partition.freeze(slot, Why.WEIGHT_LENGTH(call.where))
        for length in lengths.slots if lengths is not None and along in varying(slot) else ():
            call.state.partition.tie(*pairs(slot, length.expand(slot.shape)))
    return [values, lengths]
