"""A training step that can be made again: on a copy of its module, with a Trainer that answers and does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric

from lightning_taylor.fit.single_rank import single_rank
from lightning_taylor.trace.program import Program, Step
from lightning_taylor.trace.scope import equal_parts
from lightning_taylor.utilities.atomic import signals_deferred
from lightning_taylor.utilities.calls import ForwardCall, evaluating, tensors_in

__all__ = ["GradientWatch", "repeatable", "step_of"]


def step_of(trainer: Trainer, pl_module: LightningModule, batch: Any, examples: int) -> Step | None:
    """Return the training step of a fit, as a trace can make it on a copy of the module.

    On the copy nothing is logged, stepped or reduced over ranks, of which it knows none but this. In manual
    optimization its losses are what it goes back from, by ``manual_backward`` or a loss's own ``backward``, whether it
    returns them or not.

    Returns:
        None if the step fetches its batches by itself.
    """
    parameters = signature(pl_module.training_step).parameters
    if "dataloader_iter" in parameters:
        return None
    keywords = {"batch_idx": 0} if "batch_idx" in parameters else {}
    numbered = len(parameters) > 1 and not keywords

    def run(module: nn.Module, given: Any) -> Any:
        losses = detach(module, trainer)
        losses.clear()
        step: Any = module.training_step
        with single_rank(), _LossesTaken(losses):
            returned = step(given, 0) if numbered else step(given, **keywords)
        return [*losses, returned]

    return Step(run, batch, examples)


def detach(module: nn.Module, trainer: Trainer) -> list[Tensor]:
    """Let a copy of a LightningModule run its training step apart from the fit.

    Returns:
        Where the losses go that the step would go back from; the same list the second time.
    """
    quiet: Any = vars(module).get("_trainer")
    if isinstance(quiet, _QuietTrainer):
        return quiet.losses
    quiet = _QuietTrainer(trainer)
    attributes = {
        "_trainer": quiet,
        "log": _nothing,
        "log_dict": _nothing,
        "print": _nothing,
        "manual_backward": lambda loss, *_args, **_kwargs: quiet.losses.append(loss),
        "clip_gradients": _nothing,
        "toggle_optimizer": _nothing,
        "untoggle_optimizer": _nothing,
        "optimizers": lambda use_pl_optimizer=True: _one_or_all(quiet.optimizers),
        "lr_schedulers": lambda: _one_or_all([_Idle(c.scheduler) for c in trainer.lr_scheduler_configs]) or None,
        "all_gather": lambda data, *_args, **_kwargs: data,
    }
    vars(module).update(attributes)
    for metric in (part for part in module.modules() if isinstance(part, Metric)):
        metric.sync_on_compute = metric._to_sync = False
    return quiet.losses


def repeatable(module: LightningModule, calls: Sequence[ForwardCall]) -> list[ForwardCall]:
    """Return the calls that can be made again at any widths, for the report and the measurements.

    Those of the whole module, if there are any. A part that is given what another part made has no input of its own:
    then the whole module is called as its first part was, if it can be. Empty if nothing can be called again.
    """
    whole = [call for call in calls if call.module == ""]
    made = any(t.grad_fn is not None for call in calls for t in tensors_in((call.args, dict(call.kwargs))))
    if whole or not made:
        return whole or list(calls)
    forward = Program(tuple(calls)).with_forward(module).forward
    if forward is None:
        return []
    try:
        with evaluating(module), torch.no_grad():
            module(*forward.args, **forward.kwargs)
    except Exception:  # its ``forward`` takes something else
        return []
    return [forward]


class _LossesTaken(TorchFunctionMode):
    """Takes each loss in place of going back from it."""

    def __init__(self, losses: list[Tensor]) -> None:
        super().__init__()
        self._losses = losses

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            self._losses.append(args[0])
            return None
        return func(*args, **(kwargs or {}))


class _Idle:
    """An optimizer or scheduler that answers for the real one, and does nothing when it is asked to."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def step(self, closure: Any = None, *_args: Any, **_kwargs: Any) -> Any:
        """Evaluate the closure, and step nothing."""
        return closure() if callable(closure) else None

    def zero_grad(self, *_args: Any, **_kwargs: Any) -> None:
        """Leave the gradients alone."""

    def toggle_model(self, *_args: Any, **_kwargs: Any) -> Any:
        """Toggle nothing."""
        return _Toggled()


class _Toggled:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _QuietTrainer:
    """A Trainer that answers questions about a fit; its loggers and optimizers do nothing."""

    def __init__(self, trainer: Trainer) -> None:
        self._real = trainer
        self.losses: list[Tensor] = []
        self.logger = DummyLogger()
        self.loggers = [self.logger]
        self.optimizers = [_Idle(optimizer) for optimizer in trainer.optimizers]
        self.world_size = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _one_or_all(things: list[Any]) -> Any:
    return things[0] if len(things) == 1 else things


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


@final
class GradientWatch:
    """Notes which parameters a gradient reaches, from ``begin`` to ``end``.

    Attributes:
        equal: the parts that were equal at ``begin``, as ``scope.equal_parts`` gives them.
    """

    def __init__(self) -> None:
        self.equal: frozenset[tuple[str, str]] = frozenset()
        self._handles: list[RemovableHandle] = []
        self._reached: set[int] = set()

    def begin(self, module: nn.Module) -> None:
        """Start to look at every parameter that learns."""
        self.equal = equal_parts(module)
        with signals_deferred():  # a Ctrl-C among the hooks would leave some that nobody knows
            for parameter in module.parameters():
                if parameter.requires_grad:
                    self._handles.append(parameter.register_post_accumulate_grad_hook(self._note))

    def end(self, module: nn.Module, optimizers: Iterable[Optimizer]) -> list[str]:
        """Stop, and return the names of those parameters that an optimizer has and a gradient reached."""
        held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        trained = self._reached & held
        self.close()
        return [name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in trained]

    def close(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._reached = set()

    def _note(self, parameter: Tensor) -> None:
        self._reached.add(id(parameter))
