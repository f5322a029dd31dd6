"""Which rows of a layer's input belong to one example, found by trial: the rows that change when the example does.

Where a step joins views of its images in one batch (``torch.cat([x, flipped])``), an example is a row of each view;
where windows or frames are folded into the batch, it is several rows in sequence. Shapes cannot tell which.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_taylor.trace.observe import observe
from lightning_taylor.trace.program import Program

__all__ = ["find_view_major"]


def find_view_major(net: nn.Module, program: Program, dtype: torch.dtype) -> frozenset[str]:
    """Find the layers whose input holds the examples view by view.

    Args:
        net: a private copy; left as it was.
        program: on two examples.
        dtype: the precision that it runs in.

    Returns:
        Names of layers; empty if the program does not run on two examples.
    """
    if program.examples != 2:
        return frozenset()
    before = observe(net, program, dtype, (True,)).reads
    if not any(_could_be_views(x) for x in before.values()):
        return frozenset()
    after = observe(net, program.pick([1, 1]), dtype, (True,)).reads
    layers = {
        layer
        for (training, layer, number), x in before.items()
        if _could_be_views(x)
        and (y := after.get((training, layer, number))) is not None
        and x.shape == y.shape
        and _changes_by_turns(x, y)
    }
    return frozenset(layers)


def _could_be_views(x: Tensor) -> bool:
    return x.ndim > 1 and x.shape[0] > 2 and x.shape[0] % 2 == 0


def _changes_by_turns(x: Tensor, y: Tensor) -> bool:
    """Whether every row of the first example differs, and none of the second, where they take turns."""
    changed = (x != y).flatten(1).any(1)
    return torch.equal(changed, torch.arange(len(changed), device=changed.device) % 2 == 0)
