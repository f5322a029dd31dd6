"""Whether a batch ended with an optimizer step, also where Lightning cannot know.

In manual optimization a training step may use ``self.optimizers(use_pl_optimizer=False)``, or optimizers of its own
that were never given to the Trainer. ``global_step`` stands still then, and ``on_before_optimizer_step`` is never
called. Every optimizer of torch tells when it steps, so these are listened to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_taylor.surgery.wrapped_optimizers import parameters_of, unwrapped

__all__ = ["StepCounter"]


@final
class StepCounter:
    """The optimizer steps of one fit, batch by batch.

    In automatic optimization this is ``global_step`` and nothing else: a step that a GradScaler skips counts there.
    In manual optimization the steps of any optimizer count that holds a parameter of the module.

    Attributes:
        before_step: called with an optimizer that is about to step without Lightning's ``on_before_optimizer_step``.

    Example:
        >>> StepCounter().stepped()
        False
    """

    def __init__(self, before_step: Callable[[Optimizer], object] | None = None) -> None:
        self.before_step = before_step
        self._trainer: Trainer | None = None
        self._handles: list[RemovableHandle] = []
        self._unknown: list[Optimizer] = []
        self._global_step = 0
        self._begin()

    def __deepcopy__(self, memo: dict[int, Any]) -> StepCounter:
        # A module may bring its callback along; a copy of it must not bring the Trainer along.
        return StepCounter()

    def start(self, trainer: Trainer) -> None:
        """Count from now on, until ``close``: in ``on_train_start``."""
        self.close()
        self._trainer, self._global_step = trainer, trainer.global_step
        self._begin()
        if not trainer.lightning_module.automatic_optimization:
            self._handles = [
                register_optimizer_step_pre_hook(self._steps),
                register_optimizer_step_post_hook(self._has_stepped),
            ]

    def stepped(self) -> bool:
        """Return whether there was a step since the last call: once for each batch, in ``on_train_batch_end``."""
        if self._trainer is None:
            return False
        grown, self._global_step = self._trainer.global_step > self._global_step, self._trainer.global_step
        seen = self._seen
        self._begin()
        return grown or seen

    @property
    def optimizers(self) -> list[Optimizer]:
        """All that hold parameters of the module, as far as known: the Trainer's, then those that were seen to step."""
        known = self._trainer.optimizers if self._trainer else []
        # Lightning puts a mock in the place of none.
        return [*(o for o in known if any(map(self._concerns, unwrapped([o])))), *self._unknown]

    def close(self) -> None:
        """Listen no longer, and forget the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._unknown, self._trainer = [], [], None
        self._begin()

    def _begin(self) -> None:
        """Begin a batch. A step that raised, or that a GradScaler skipped, has left its marks."""
        self._seen, self._ready = False, self._lightnings()
        self._inside: list[Optimizer] = []

    def _steps(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._concerns(optimizer):
            return
        announced = self._lightnings() > self._ready
        if not self._inside and not announced and self.before_step is not None:
            self.before_step(optimizer)
        self._inside.append(optimizer)  # a wrapper's, before that of the one inside

    def _has_stepped(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._inside or not self._concerns(optimizer):
            return
        self._seen = True
        self._inside.pop()
        if not self._inside:
            self._ready = self._lightnings()
            if all(optimizer is not known for known in unwrapped(self.optimizers)):
                self._unknown.append(optimizer)

    def _lightnings(self) -> int:
        """Count the steps that Lightning's wrappers have begun; each leads to ``on_before_optimizer_step``."""
        if self._trainer is None:
            return 0
        return self._trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.ready

    def _concerns(self, optimizer: Optimizer) -> bool:
        if self._trainer is None:
            return False
        # Asked anew each time, and not remembered: groups and modules may be added in the middle of a fit.
        own = {id(p) for p in self._trainer.lightning_module.parameters()}
        return any(id(p) in own for p in parameters_of(optimizer))
