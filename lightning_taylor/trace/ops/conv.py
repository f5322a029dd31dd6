"""Rules for convolutions: what comes in is tied to the weight's input entries, its outputs are born.

Shape legend: O = output channels, I = input channels, C = channels, G = groups of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_taylor.graph.types import Role
from lightning_taylor.trace.labels import Labels, compressed, pairs, varying
from lightning_taylor.trace.ops.layer import (
    along_dim,
    axes_of,
    freeze_layer,
    produce,
    read_channels,
    spread_along,
    tie_along,
    vector_of,
    with_batch,
)
from lightning_taylor.trace.ops.zeros import are_zeros, first_state
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call

__all__ = [
    "convolution",
    "deformed",
]


def convolution(call: Call) -> Labels | None:
    """Convolutions of any dimension, plain, depthwise and transposed."""
    weight = call.labels("weight")
    if weight is None or not weight.weight:
        # A parameter without labels is of a loss network, or beyond the scope.
        known = isinstance(call.get("weight"), nn.Parameter)
        return freeze_layer(call, (Why.SUMMED if known else Why.COMPUTED_WEIGHT)(call.where))
    x, batch = read_channels(call, call.labels("input"))
    return with_batch(call, _convolve(call, x, weight), batch)


def deformed(call: Call) -> Labels | None:
    """A convolution that samples its input at computed places: those stay, its channels can go."""
    weight, several = call.labels("weight"), max(call.get("groups"), call.get("offset_groups"))
    for name in ("offset", "mask"):
        call.state.freeze(call.labels(name), Why.COORDINATES(call.where, what="positions"))
    if weight is None or not weight.weight or several > 1:
        return freeze_layer(call, Why.UNEQUAL_GROUPS(call.where, groups=several))
    return _plain_convolution(call, call.labels("input"), weight, 1, 0)


def _convolve(call: Call, x: Labels | None, weight: Labels) -> Labels | None:
    groups, shape, transposed = call.get("groups"), call.get("weight").shape, call.get("transposed")
    if groups == 1:
        dim_in, dim_out = (0, 1) if transposed else (1, 0)
        return _plain_convolution(call, x, weight, dim_in, dim_out)
    inputs = call.get("input").shape[1]
    if groups == inputs and not transposed and shape[0] % groups == 0:
        return _depthwise(call, x, weight)
    return _grouped(call, x, weight)


def _grouped(call: Call, x: Labels | None, weight: Labels) -> Labels | None:
    """Every group reads a row of a grid of inputs, and makes a row of a grid of outputs.

    Whole groups go, or as many channels of each: then the same ones, since they share the weight's input entries. Of a
    group of one channel none can go alone.
    """
    partition, groups = call.state.partition, call.get("groups")
    own_O, reads_I = (along_dim(weight, dim, call.get("weight").ndim) for dim in (0, 1))
    x_I = None if x is None or varying(x.slots[0]) != {1 - call.get("input").ndim} else vector_of(x.slots[0], 1)
    if call.get("transposed") or own_O is None or reads_I is None or x_I is None or bool((x_I == NEUTRAL).any()):
        freeze_layer(call, Why.UNEQUAL_GROUPS(call.where, groups=groups))
        return None if own_O is None or call.get("transposed") else Labels((spread_along(own_O, 1, call.out.shape),))
    inputs_GI, outputs_GO = x_I.view(groups, -1), own_O.view(groups, -1)
    wanted = partition.options.conv_groups
    whole = wanted == "whole" or (wanted == "auto" and groups >= inputs_GI.shape[1])
    units = [0] if whole or 1 in (inputs_GI.shape[1], outputs_GO.shape[1]) else [1]
    read = call.state.grids.split(inputs_GI, call.where, call.place, units)
    made = call.state.grids.split(outputs_GO, call.where, call.place, units)
    for dim, entries in ((0, made.axes[0]), (1, reads_I.numpy())):
        if (own := read.axes[dim]) is not None and entries is not None:
            partition.tie(torch.from_numpy(own), torch.from_numpy(entries))
    if call.state.holds("groups", groups):
        made.size_attributes[call.state.module, "groups", (0,)] = groups
    partition.assign(reads_I, Role.CONSUMER)
    call.cost([*axes_of(call, own_O), *axes_of(call, reads_I)])
    return produce(call, own_O, call.labels("bias"), dim=1)


def _plain_convolution(call: Call, x: Labels | None, weight: Labels, dim_in: int, dim_out: int) -> Labels | None:
    ndim = call.get("weight").ndim
    reads_I, makes_O = along_dim(weight, dim_in, ndim), along_dim(weight, dim_out, ndim)
    _consume(call, x, reads_I, dim=1, shape=call.get("input").shape)
    axes = [*axes_of(call, reads_I), *axes_of(call, makes_O)]
    call.cost(axes)
    return produce(call, makes_O, call.labels("bias"), dim=1)


def _depthwise(call: Call, x: Labels | None, weight: Labels) -> Labels | None:
    """One filter (or several) per channel: passes the channel through, and goes with it."""
    partition = call.state.partition
    own_O = along_dim(weight, 0, call.get("weight").ndim)
    if x is None or own_O is None:
        return freeze_layer(call, Why.READS_NO_CHANNELS(call.where))
    inputs = call.get("input").shape[1]
    multiplier = call.get("weight").shape[0] // inputs
    if call.state.holds("groups", inputs):
        # Else nothing tells a depthwise layer of one channel from a plain one, when it grows back.
        partition.followers[call.state.module, "groups"] = (axes_of(call, own_O)[0], inputs)
    slot = x.slots[0]
    for i in range(multiplier):
        tie_along(call, slot, own_O[i::multiplier], dim=1)
    partition.assign(own_O, Role.PASS_THROUGH)
    bias = call.labels("bias")
    if bias:
        partition.tie(*pairs(bias.slots[0], own_O))
        partition.assign(bias.slots[0], Role.PASS_THROUGH)
    call.state.name_layer(own_O)
    call.cost(axes_of(call, own_O))
    # What joins it later with a part that was not filtered (a class token) must find the same labels there.
    same = multiplier == 1 and varying(slot) == {1 - slot.ndim} and not bool((compressed(slot) == NEUTRAL).any())
    return Labels((spread_along(vector_of(slot, 1) if same else own_O, 1, call.out.shape),))


def _consume(call: Call, x: Labels | None, reads_I: Tensor | None, dim: int, shape: torch.Size) -> None:
    partition = call.state.partition
    if reads_I is None:
        if x is not None:
            call.state.freeze(x, Why.ONLY_INPUT(call.where))
        return
    partition.assign(reads_I, Role.CONSUMER)
    if x is None:
        if shape.numel() == 0:  # a head without a detection; what it reads when there is one, another path says
            return
        partition.freeze(reads_I, Why.READS_INPUT(call.where))
        return
    slot, given = x.slots[0], call.get("input")
    if given.numel() and are_zeros(call, given):
        if (zeros_C := first_state(call, given, dim)) is None:
            return  # as wide as the channels that come later, by code that follows them
        slot = spread_along(zeros_C, dim, shape)
    tie_along(call, slot, reads_I, dim)
