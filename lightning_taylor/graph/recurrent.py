"""Recurrent modules: one number of hidden units for all of their layers and directions.

The trace itself finds what a unit is (a row of each gate, a column of the weights that read the state); only that the
layers of one module cannot differ is not in any operator.
"""

from __future__ import annotations

import torch
from torch import nn

from lightning_taylor.graph.ledger import Ledger

__all__ = ["tie_recurrent"]


def tie_recurrent(ledger: Ledger, net: nn.Module) -> None:
    """Hidden units of all layers and directions of a recurrent module go together: it has one number for all."""
    for name, module in net.named_modules():
        if isinstance(module, nn.RNNBase):
            weights = [
                f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters() if own.startswith("weight_hh")
            ]
            if module.proj_size:
                # Which torch recognises by two widths that differ, and so they have to.
                ledger.freeze_axes([(weight, dim) for weight in weights for dim in (0, 1)], f"projected by {name}")
            entries = [torch.from_numpy(ledger.entries((weight, 1))) for weight in weights]
            for other in entries[1:]:
                ledger.tie(entries[0], other)
