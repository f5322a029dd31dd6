"""The hooks that let a Trainer load checkpoints of any size: on the model, and in a fit on the copies of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_taylor.checkpoint.widths import ShapeFitter, origin_of, widths_of
from lightning_taylor.fit.distributed import comes_back
from lightning_taylor.fit.trainer_state import incoming_checkpoint, loadable
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.utilities.atomic import signals_deferred

__all__ = [
    "ShapeHooks",
]


@final
class ShapeHooks:
    """Fits shapes from a ``setup`` to its ``teardown``."""

    def __init__(self) -> None:
        self._fitter: ShapeFitter | None = None

    def begin(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        own: Callback,
        graph: Callable[[], ChannelGraph | None],
    ) -> None:
        """Place the hooks.

        Args:
            trainer: who loads.
            pl_module: the model.
            own: the callback that prunes, which keeps no copy of it.
            graph: gives the channels at the present widths, which a state dict then tells; None if they are not known.
        """
        self._fitter = ShapeFitter(
            widths=lambda: widths_of(graph()),
            fallback=lambda: origin_of(incoming_checkpoint(trainer)),
        )
        modules = loadable(trainer, pl_module, own)
        with signals_deferred():  # a Ctrl-C among the hooks would leave some that nobody knows
            for module in modules:
                self._fitter.watch(module)

    def end(self, trainer: Trainer) -> None:
        """Take them off, unless the parent of this process still needs to hear of the widths."""
        if not comes_back(trainer.strategy):
            self.stop()

    def stop(self) -> None:
        """Take them off whatever comes."""
        if self._fitter:
            self._fitter.close()
            self._fitter = None
