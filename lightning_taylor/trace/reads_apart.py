"""Which weights are read by other code than that of their modules, where no hook on a module sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_taylor.modules.weight_reads import weight_read_by

__all__ = ["ReadsApart"]


@final
class ReadsApart(TorchFunctionMode):
    """Notes the weights that are read while another module runs than one that has them.

    Args:
        net: the model.
        names: id of each parameter -> its first qualified name.
        running: returns the qualified name of the module that runs.

    Attributes:
        seen: the names of the weights.
    """

    def __init__(self, net: nn.Module, names: Mapping[int, str], running: Callable[[], str]) -> None:
        super().__init__()
        self._modules, self._names, self._running = dict(net.named_modules()), names, running
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a read, and let it through."""
        weight = weight_read_by(func, args, kwargs or {})
        if weight is not None and id(weight) in self._names:
            own = self._modules[self._running()]._parameters.values()
            if not any(parameter is weight for parameter in own):
                self.seen.add(self._names[id(weight)])
        return func(*args, **(kwargs or {}))
