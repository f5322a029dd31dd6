"""How to speak to a Trainer: its strategy and ranks, its gradient scale, its other callbacks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelSummary
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.guard import Guard
from lightning_taylor.plan.pace import Standing
from lightning_taylor.surgery.mirrors import Copy, find_copies, unreachable_copies
from lightning_taylor.surgery.wrapped_optimizers import parameters_of, unwrapped
from lightning_taylor.trace.api import trace_calls
from lightning_taylor.trace.options import TraceOptions
from lightning_taylor.trace.patterns import matches
from lightning_taylor.trace.program import Step
from lightning_taylor.utilities.calls import ForwardCall
from lightning_taylor.utilities.lightning_names import either

__all__ = [
    "check_alone",
    "check_copies",
    "check_validation",
    "clear_screen",
    "copies_of",
    "example_call",
    "fit_length",
    "gradient_scale",
    "holders",
    "incoming_checkpoint",
    "loadable",
    "optimized_names",
    "remaining_scale",
    "remaining_steps",
    "standing",
    "trace_step",
    "warn_of_unreachable",
]

_UNREACHABLE = "is a tuple that looks like a copy of the parameters, which TaylorPruning cannot prune along"


def check_alone(trainer: Trainer, kind: type[Callback]) -> None:
    """Refuse a second callback of a kind: each would go by widths that the other changes.

    Raises:
        MisconfigurationException: with the way out.
    """
    found = sum(isinstance(callback, kind) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if found > 1:
        raise MisconfigurationException(
            f"the Trainer has {found} {kind.__name__} callbacks, and one network loses channels by one plan: keep one, "
            "with scope=[...] for all parts that it prunes, or prune one part after the other in two fits"
        )


def check_validation(trainer: Trainer, guard: Guard | None) -> None:
    """Refuse a guard that will never be asked.

    Raises:
        ValueError: if there is one, and the fit has no validation.
    """
    if guard and not trainer.enable_validation:
        raise ValueError(f"{guard!r} needs a validation, and this fit has none: give it a validation_step and its data")


def example_call(inputs: Any, pl_module: LightningModule) -> ForwardCall:
    """What a user gave as example inputs, on the module's device, as a call of the module."""
    inputs = pl_module._apply_batch_transfer_handler(inputs)
    if isinstance(inputs, Mapping):
        return ForwardCall("", (), inputs)
    return ForwardCall("", inputs if isinstance(inputs, tuple) else (inputs,))


def trace_step(
    pl_module: LightningModule,
    calls: list[ForwardCall],
    *,
    ignore: Sequence[str] = (),
    options: TraceOptions | None = None,
    step: Step | None = None,
    forward: ForwardCall | None = None,
    **known: Any,
) -> ChannelGraph:
    """Trace a training step, or what it called; the options are those of ``trace_calls``.

    Raises:
        UnsupportedModelError: if it called nothing.
    """
    if not calls and forward is None:
        raise UnsupportedModelError(
            f"the training step of {type(pl_module).__name__} called no module with parameters before its first "
            "backward pass, so there is nothing to trace; pass example_inputs="
        )
    calls = calls or [forward] if forward else calls
    return trace_calls(pl_module, calls, ignore=ignore, options=options, step=step, forward=forward, **known)


def gradient_scale(trainer: Trainer, pl_module: LightningModule) -> float | Tensor:
    """What a loss has been multiplied by when ``backward`` runs, without waiting for the device."""
    scale = _scaler_scale(trainer)
    # In manual optimization who accumulates divides, or not, in the training step. The quotient is a new tensor: the
    # scaler updates its own in place.
    return scale / (trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1)


def remaining_scale(trainer: Trainer, optimizer: torch.optim.Optimizer) -> float | Tensor:
    """What the gradients are still multiplied by when an optimizer is about to step: 1, but for a fused one."""
    # Lightning leaves it to these optimizers to unscale, inside of their step.
    unscales = getattr(optimizer, "_step_supports_amp_scaling", False)
    return _scaler_scale(trainer) / 1 if unscales else 1.0


def _scaler_scale(trainer: Trainer) -> float | Tensor:
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    scale = getattr(scaler, "_scale", None)
    if scale is None:
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
    return scale


def holders(trainer: Trainer, own: object) -> dict[str, object]:
    """The Trainer's other callbacks by their names, for what they may keep of the model."""
    found: dict[str, object] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        same = sum(type(other).__name__ == name for other in found.values())
        if callback is not own:
            found[f"{name}[{same}]" if same else name] = callback
    return found


def copies_of(trainer: Trainer, pl_module: LightningModule, own: object) -> list[Copy]:
    """What the module and the Trainer's other callbacks keep of the parameters, such as averages.

    Not what the callback ignores: a teacher that has to stay as it is looks like an average.
    """
    patterns = getattr(own, "ignore", ())
    return [copy for copy in find_copies(pl_module, holders(trainer, own)) if not _is_ignored(copy.owner, patterns)]


def _is_ignored(owner: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the attribute that somebody keeps something in, as in ``Module.teachers[0]``."""
    attribute = owner.partition("[")[0].partition(".")[2]
    return any(matches(attribute, pattern) for pattern in patterns)


def loadable(trainer: Trainer, pl_module: LightningModule, own: object) -> list[nn.Module]:
    """Whatever the values of a checkpoint may go into: the module, and in a fit its copies."""
    copies = copies_of(trainer, pl_module, own) if trainer.state.fn == "fit" else []
    return [pl_module, *(copy.tensors for copy in copies if isinstance(copy.tensors, nn.Module))]


def check_copies(trainer: Trainer, pl_module: LightningModule, own: object) -> None:
    """Check before training that whatever looks like a copy of the parameters can follow them.

    Raises:
        UnsupportedModelError: naming what cannot.
    """
    for owner in unreachable_copies(pl_module, holders(trainer, own)):
        raise UnsupportedModelError(f"{owner} {_UNREACHABLE}: keep it as a list, a dict or a module")


def warn_of_unreachable(trainer: Trainer, pl_module: LightningModule, own: object, told: set[str]) -> None:
    """Name what looks by now like a copy of the parameters and cannot follow, once for each that is not in ``told``.

    This is no error: it may be made anew at each step, as a tuple of gradients is.
    """
    for owner in unreachable_copies(pl_module, holders(trainer, own)):
        if owner not in told:
            told.add(owner)
            rank_zero_warn(f"{owner} {_UNREACHABLE}: it will have the wrong shapes after the next event")


def optimized_names(trainer: Trainer, pl_module: LightningModule) -> frozenset[str] | None:
    """Return which parameters the Trainer's optimizers hold, frozen or not; None if they hold none of the module's."""
    held = {id(p) for optimizer in unwrapped(trainer.optimizers) for p in parameters_of(optimizer)}
    return frozenset(name for name, p in pl_module.named_parameters() if id(p) in held) or None


def incoming_checkpoint(trainer: Trainer) -> Mapping[str, Any]:
    """The checkpoint that is being restored; empty if none is.

    Lightning has no public name for it, and shows it to callbacks only after the model was loaded.
    """
    return getattr(trainer._checkpoint_connector, "_loaded_checkpoint", {})


def remaining_steps(trainer: Trainer) -> float:
    """Batches with an optimizer step from now to the end of the fit; infinite if nobody knows."""
    total = trainer.estimated_stepping_batches
    if total < 0 or total == float("inf"):
        return float("inf")
    kind = either(GradientAccumulationScheduler)
    accumulations: list[Any] = [c for c in trainer.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]
    if accumulations and trainer.max_epochs is not None and trainer.max_epochs > 0:
        # The Trainer's estimate knows the accumulation of the present epoch only.
        batches, at = trainer.num_training_batches, accumulations[0].get_accumulate_grad_batches
        planned = sum(math.ceil(batches / at(epoch)) for epoch in range(trainer.max_epochs))
        total = planned if trainer.max_steps == -1 else min(planned, trainer.max_steps)
    # Not global_step: with several optimizers each of them counts there.
    return total - trainer.fit_loop.epoch_loop._batches_that_stepped


def fit_length(trainer: Trainer) -> FitLength:
    """Return how many batches with an optimizer step are to come, and how many an epoch has."""
    batches = trainer.num_training_batches
    epoch = math.ceil(batches / trainer.accumulate_grad_batches) if batches != float("inf") else batches
    return FitLength(remaining_steps(trainer), epoch)


def standing(trainer: Trainer) -> Standing:
    """Return how far the fit has come at the end of a batch, and how far it goes."""
    epoch, epochs = trainer.num_training_batches, -1 if trainer.max_epochs is None else trainer.max_epochs
    return Standing(
        # The batch that ends now is not counted there yet.
        batches=trainer.fit_loop.epoch_loop._batches_that_stepped + 1,
        counted=trainer.global_step,
        most_batches=float("inf") if epochs < 0 else epochs * epoch,
        most_counted=float("inf") if trainer.max_steps < 0 else trainer.max_steps,
        epoch=epoch,
    )


def clear_screen(trainer: Trainer, pl_module: LightningModule, *, summarize: bool) -> None:
    """Make ready for a table at the end of a fit: a live bar comes to rest above it, sizes are shown anew.

    Args:
        trainer: whose bar and model summary these are.
        pl_module: at its final widths.
        summarize: whether its sizes are no longer those that the Trainer's ``ModelSummary`` printed at the start.
    """
    bar: Any = trainer.progress_bar_callback
    live: Any = getattr(bar, "progress", None)
    if hasattr(live, "stop"):  # a rich bar would be drawn once more when it is stopped, below whatever was printed
        live.stop()
    summaries: list[Any] = [c for c in trainer.callbacks if isinstance(c, either(ModelSummary))]  # type: ignore[attr-defined]
    for shown in summaries if summarize else ():
        try:
            shown.on_fit_start(trainer, pl_module)
        except Exception as error:
            rank_zero_warn(f"{type(shown).__name__} could not show the pruned model: {type(error).__name__}: {error}")
