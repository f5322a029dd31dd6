"""Recurrent modules: what a hidden unit is, and that all layers and directions have as many.

A unit is a row of each gate and a column of the weights that read the state. Over several steps the trace finds that by
itself; an example may have one step only, and then the state that is read is the zeros of the beginning.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from lightning_taylor.trace.partition import LabelPartition
from lightning_taylor.trace.reasons import Why

__all__ = [
    "tie_recurrent",
]

_STATE = re.compile(r"weight_hh(_l\d+(_reverse)?)?$")
"""The weights that read a state; not what a weight norm computes them from."""


def tie_recurrent(partition: LabelPartition, net: nn.Module) -> None:
    """Tie the hidden units of every recurrent module of a net."""
    for name, module in net.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            own = [own for own, _ in module.named_parameters(recurse=False) if _STATE.match(own)]
            _tie(partition, [f"{name}.{weight}".lstrip(".") for weight in own], getattr(module, "proj_size", 0), name)


def _tie(partition: LabelPartition, weights: list[str], projected: int, name: str) -> None:
    if projected:
        # Which torch recognises by two widths that differ, and so they have to.
        partition.freeze_axes([(weight, dim) for weight in weights for dim in (0, 1)], Why.PROJECTED(name=name))
        return
    rows, columns = ([torch.from_numpy(partition.entries((weight, dim))) for weight in weights] for dim in (0, 1))
    for gates_GH, unit_H in zip(rows, columns, strict=True):
        if not len(unit_H) or not len(columns[0]):
            continue  # one unit, which stays
        for gate_H in gates_GH.view(-1, len(unit_H)):
            partition.tie(unit_H, gate_H)
        partition.tie(columns[0], unit_H)
