"""What a rule for an operator of a user's own says: which parameters scale, read and make channels.

Shape legend: C = channels, I = input channels, O = output channels.
"""

from __future__ import annotations

from torch import Tensor

from lightning_taylor.graph.types import Role
from lightning_taylor.trace.labels import Labels
from lightning_taylor.trace.ops.layer import along_dim, axes_of, produce, tie_along
from lightning_taylor.trace.ops.pointwise import freeze_all
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "consume_channels",
    "produce_channels",
    "tie_vector",
]


def tie_vector(call: Call, x: Labels | None, name: str, *, dim: int) -> None:
    """Let each entry of a parameter go with its channel: a scale, a shift, a running statistic.

    Args:
        call: the operator's call.
        x: what the activation carries.
        name: the argument that is the parameter, with C entries along one dimension; it may be None.
        dim: the activation's dimension of size C.
    """
    vector = call.labels(name)
    if vector is None or not _is_usable(call, x, vector):
        return
    if len(vector.slots) != 1:
        freeze_all(call, Why.NO_RULE(call.where))
    elif x is None:
        call.state.freeze(vector, Why.BESIDE_NO_CHANNELS(call.where))
    else:
        vector_C = vector.slots[0].flatten()
        tie_along(call, x.slots[0], vector_C, dim)
        call.state.partition.assign(vector_C, Role.PASS_THROUGH)


def consume_channels(call: Call, x: Labels | None, name: str, *, dim: int, weight_dim: int) -> None:
    """Let a weight read the channels of an activation, and sum over them: an entry goes with the channel it reads.

    Args:
        call: the operator's call.
        x: what the activation carries.
        name: the argument that is the weight.
        dim: the activation's dimension of size I.
        weight_dim: the weight's dimension of size I.
    """
    weight = call.labels(name)
    if not _is_usable(call, x, weight):
        return
    reads_I = _along(call, weight, name, weight_dim)
    if reads_I is None:
        call.state.freeze(x, Why.ONLY_INPUT(call.where))
        return
    call.state.partition.assign(reads_I, Role.CONSUMER)
    if x is None:
        call.state.partition.freeze(reads_I, Why.READS_INPUT(call.where))
    else:
        tie_along(call, x.slots[0], reads_I, dim)


def produce_channels(call: Call, name: str, bias: str | None = None, *, dim: int, weight_dim: int) -> Labels | None:
    """Let a weight make the channels of the output, with the bias that is added to them.

    Args:
        call: the operator's call; its cost is noted as proportional to the widths of the weight.
        name: the argument that is the weight.
        bias: the argument that is the bias, with O entries; it may be None.
        dim: the output's dimension of size O.
        weight_dim: the weight's dimension of size O.

    Returns:
        What the output carries.
    """
    weight = call.labels(name)
    if weight is None or not _is_usable(call, None, weight):
        return None
    call.cost([axis for d in range(call.get(name).ndim) for axis in axes_of(call, _along(call, weight, name, d))])
    return produce(call, _along(call, weight, name, weight_dim), call.labels(bias) if bias else None, dim)


def _along(call: Call, weight: Labels | None, name: str, dim: int) -> Tensor | None:
    ndim = call.get(name).ndim
    return None if weight is None else along_dim(weight, dim % ndim, ndim)


def _is_usable(call: Call, x: Labels | None, weight: Labels | None) -> bool:
    """Freeze everything unless the weight is one, and the activation is none and has channels along one dimension."""
    mistaken = weight is not None and not weight.weight
    if mistaken or (x is not None and (x.weight or len(x.slots) > 1)):
        freeze_all(call, Why.NO_RULE(call.where))
        return False
    return True
