"""How far a validation metric may fall before the pruning holds back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_taylor.utilities.checks import is_number

__all__ = ["Guard"]

Action = Literal["stop", "pause", "rollback"]
Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Guard:
    """Holds the pruning back when a validation metric falls too far below that of the dense model.

    The dense model's value is that of the last validation before the first event; where there was none, one is run
    then. Every later validation is compared with it, up to the first one at the target that is good enough.

    Args:
        monitor: name of the metric, as the module logs it in validation, e.g. "val_acc".
        max_drop: how much worse than the dense model's it may be, in the metric's own units.
        action: "pause" lets events wait until the metric has recovered; "stop" removes no more; "rollback" goes back,
            exactly, to the network, the optimizer state and the averaged copies of the last validation that was good
            enough, and removes no more.
        mode: "max" for a metric that should be large, "min" for one that should be small, like a loss.

    Raises:
        ValueError: for a monitor that is no name, a negative or infinite drop, or an unknown action or mode.

    Example:
        >>> Guard("val_acc", max_drop=0.02).holds(dense=0.91, now=0.88)
        True
        >>> Guard("val_loss", max_drop=0.1, mode="min").holds(dense=0.40, now=0.45)
        False
    """

    monitor: str
    max_drop: float
    action: Action = "pause"
    mode: Mode = "max"

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise ValueError(f"monitor must be the name of a metric such as 'val_acc', got {self.monitor!r}")
        if not is_number(self.max_drop) or not 0 <= self.max_drop < math.inf:
            raise ValueError(f"max_drop must be a number of at least 0, got {self.max_drop!r}")
        for name, value, known in (("action", self.action, get_args(Action)), ("mode", self.mode, get_args(Mode))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")

    def holds(self, dense: float, now: float) -> bool:
        """Whether the metric has fallen too far; one that is not a number has."""
        drop = dense - now if self.mode == "max" else now - dense
        return not drop <= self.max_drop
