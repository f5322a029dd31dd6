"""Rules for normalisations: exact where statistics are a channel's own, or a group's that goes whole.

Shape legend: O = output channels, I = input channels, C = channels, G = groups of channels.
"""

from __future__ import annotations

from lightning_taylor.graph.channels import Role
from lightning_taylor.graph.labels import Labels, is_constant, varying
from lightning_taylor.graph.ledger import NEUTRAL
from lightning_taylor.graph.tracer import Call
from lightning_taylor.graph.weights import read_channels, tie_along, vector_of

__all__ = ["batch_norm", "group_norm", "normalized_over"]


def batch_norm(call: Call) -> list[Labels | None]:
    """Each channel by its own statistics: weight, bias and running statistics go with the channel."""
    given = call.labels("input")
    x, _ = read_channels(call, given)
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = [v.slots[0] for name in names if (v := call.labels(name)) is not None]
    for vector_C in vectors:
        if x is None:
            call.tracer.ledger.freeze(vector_C, f"normalises a tensor without channels ({call.where})")
        else:
            tie_along(call, x.slots[0], vector_C, dim=1)
            call.tracer.ledger.assign(vector_C, Role.PASS_THROUGH)
    return [given]


def group_norm(call: Call) -> list[Labels | None]:
    """Each group of channels by its own statistics: whole groups can go."""
    given, groups = call.labels("input"), call.get("group")
    x, _ = read_channels(call, given)
    vectors = [v.slots[0] for name in ("weight", "bias") if (v := call.labels(name)) is not None]
    x_C = None if x is None or varying(x.slots[0]) != {1 - call.get("input").ndim} else vector_of(x.slots[0], 1)
    if x_C is None or groups == 1 or bool((x_C == NEUTRAL).any()):
        return normalized_over(call)
    grid = call.tracer.ledger.grids.split(x_C.view(groups, -1), call.where, call.place, [0])
    if call.tracer.holds("num_groups", groups):
        grid.holders[call.tracer.module, "num_groups", 0] = groups
    for vector_C in vectors:
        tie_along(call, x_C, vector_C, dim=0)
        call.tracer.ledger.assign(vector_C, Role.PASS_THROUGH)
    return [given]


def normalized_over(call: Call) -> list[Labels | None]:
    """Exact only while no channel lies in the dimensions that are averaged over."""
    x = call.labels("input")
    if call.name == "native_group_norm":
        dims: tuple[int, ...] = tuple(range(1, call.get("input").ndim))
    else:
        dims = tuple(range(-len(call.get("normalized_shape")), 0))
    for slot in x.slots if x is not None else ():
        if not is_constant(slot, dims):
            reason = f"its statistics run over the channels ({call.where}), so removing one changes the others"
            call.tracer.ledger.freeze(slot, reason)
    for name in ("weight", "bias"):
        call.tracer.freeze(call.labels(name), f"scales a normalisation over the channels ({call.where})")
    return [x]
