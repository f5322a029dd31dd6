"""Copies of the network that nothing updates: what looks like an average of it may be a teacher."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.modules.model_copy import named_tensors

__all__ = ["sums_of_copies", "warn_of_still"]


def sums_of_copies(model: nn.Module, graph: ChannelGraph) -> dict[str, float]:
    """Return what the entries of each tensor of a copy add up to, by name.

    Args:
        model: the living model.
        graph: which knows the copies inside of it.
    """
    names = {s.tensor for group in graph.groups.values() for s in group.of(Role.COPY)}
    return {name: float(t.detach().double().sum()) for name, t in named_tensors(model) if name in names}


def warn_of_still(before: Mapping[str, float], now: Mapping[str, float]) -> None:
    """Warn of copies that have not changed since the fit began, before they lose their first channels.

    Args:
        before: of ``sums_of_copies``, when the fit began.
        now: the same, now.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_still({"teacher.weight": 1.0, "slow.weight": 1.0}, {"teacher.weight": 1.0, "slow.weight": 2.0})
        >>> str(caught[0].message).partition(" has the shapes")[0]
        'teacher'
    """
    parts = {name: name.partition(".")[0] for name in before}
    moved = {parts[name] for name, total in now.items() if before.get(name) != total}
    if still := sorted(set(parts.values()) - moved):
        warnings.warn(
            f"{', '.join(still)} has the shapes of what is pruned and has not changed since the fit began: as a copy "
            f"it loses the same channels. If it is a teacher that has to stay as it is, add ignore={still}",
            stacklevel=2,
        )
