"""What the Trainer's loggers are told: scalars per step and per event, settings, histograms, figures, tables, files.

A logger is asked what it can do, never what it is: those of ``pytorch_lightning`` and a user's own work as well.
All of it happens on rank zero. A logger that raises costs its own record and a warning, never the fit.

Step axis: batches that stepped, as Lightning's own metrics, so that both share a row. What the network is after the
optimizer's first step is at 0, after its second at 1.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_taylor.fit.report import free_paths, quantiles
from lightning_taylor.fit.session import Session
from lightning_taylor.fit.trainer_state import clear_screen
from lightning_taylor.plan.record import Event
from lightning_taylor.report.figures import figures
from lightning_taylor.report.logger_adapters import can_draw, keep_files, show_figure, show_histograms, show_tables
from lightning_taylor.report.summary import PruningSummary, Size

__all__ = [
    "FitLog",
    "log_event",
    "log_settings",
    "log_size",
    "log_start",
    "log_step",
    "log_summary",
    "plain_settings",
    "report_folder",
]

NAME = "TaylorPruning"
"""Of the settings among the hyperparameters; "pruning" might be one of the user's own."""

_DEEPEST = 4  # of nested settings; no user's object may lead us around in a circle

_QUANTILES = ("min", "p05", "p25", "median", "p75", "p95", "max")


def log_step(pl_module: LightningModule, fractions: Mapping[str, float]) -> None:
    """Hand what remains to Lightning, which logs it as often as the user's own metrics; FLOPs go to the bar as well.

    On the bar under their full name too: "flops" may be a metric of the user's.

    Args:
        pl_module: in ``on_train_batch_end``.
        fractions: resource -> fraction of the dense model.
    """
    at_step: dict[str, Any] = {"on_step": True, "on_epoch": False, "batch_size": 1, "rank_zero_only": True}
    for name, value in fractions.items():
        pl_module.log(f"pruning/{name}", value, prog_bar=name == "flops", **at_step)


def log_settings(trainer: Trainer, pl_module: LightningModule, settings: Mapping[str, Any]) -> None:
    """Add the callback's settings to the hyperparameters, before Lightning logs the user's; unless it may not.

    TensorBoard shows only the first set of hyperparameters that a run logs. So where Lightning is about to log the
    user's, ours go along with them; and where it is not, the first place is left to whom the user may log by hand.

    Args:
        trainer: in ``on_fit_start``.
        pl_module: whose hyperparameters these are added to.
        settings: plain and nested, as from ``plain_settings``.
    """
    own, users = {NAME: dict(settings)}, _hyperparameters(trainer, pl_module)
    if not _may_log_settings(trainer):
        return

    def tell(logger: Any) -> None:
        if users:
            logger.log_hyperparams({**own, **users})
        elif _takes_metrics(logger):
            logger.log_hyperparams(own, {})  # with no metric at all they go into hparams.yaml only
        else:
            logger.log_hyperparams(own)

    _each(trainer, "the settings", tell)


def log_start(trainer: Trainer, pl_module: LightningModule, settings: Mapping[str, Any], size: Size) -> None:
    """What a fit begins with: its size, and the settings where they had to wait for the user's.

    Args:
        trainer: at the end of the fit's first batch.
        pl_module: as for ``log_settings``.
        settings: as for ``log_settings``.
        size: before the first event of this fit.
    """
    own = {NAME: dict(settings)}
    if _may_log_settings(trainer) and not _hyperparameters(trainer, pl_module):
        _each(trainer, "the settings", lambda logger: _takes_metrics(logger) and logger.log_hyperparams(own))
    log_size(trainer, size)


def log_size(trainer: Trainer, size: Size) -> None:
    """How large the network is now."""
    _scalars(trainer, _sizes(size))


def log_event(
    trainer: Trainer, event: Event, size: Size, scores: Mapping[str, Tensor], correlation: float | None = None
) -> None:
    """What an event removed, how long it took, what is left, and how the scores that decided it were spread.

    Args:
        trainer: in ``on_train_batch_end`` of the event.
        event: the latest.
        size: after it.
        scores: group -> shape ``(C,)``, normalised, C as before the event; empty on all ranks but the first.
        correlation: of these with the oracle, if they were checked.
    """
    values = {
        **_sizes(size),
        "pruning_event/removed": sum(map(len, event.removed.values())),
        "pruning_event/seconds": event.seconds,
    }
    if scores:
        spread = quantiles(torch.cat([score_C.flatten() for score_C in scores.values()]))
        values |= {f"pruning_score/{name}": value for name, value in zip(_QUANTILES, spread, strict=True)}
    if correlation is not None:
        values["pruning/oracle_correlation"] = correlation
    _scalars(trainer, values)
    step = _step(trainer)
    _each(trainer, "the histograms", lambda logger: show_histograms(logger, scores, step))


def log_summary(trainer: Trainer, summary: PruningSummary, paths: Sequence[Path]) -> None:
    """Figures, tables and files of the whole pruning, where a logger can show or keep them.

    Args:
        trainer: at the end of the fit, before the loggers are closed.
        summary: of the fit.
        paths: of the data and the page, as far as they could be written.
    """
    step = max(0, _step(trainer) - 1)  # of the last batch
    for name, figure in _figures(trainer, summary).items():
        _each(trainer, f"the figure {name!r}", lambda logger, n=name, f=figure: show_figure(logger, n, f, step))
    _each(trainer, "the tables", lambda logger: show_tables(logger, summary, step))
    written = [path for path in paths if path.exists()]
    _each(trainer, "the files", lambda logger: keep_files(logger, written, step))


def report_folder(trainer: Trainer) -> Path:
    """Where a fit's report belongs: beside the ``checkpoints`` of the run, in its log directory.

    Args:
        trainer: on rank zero; others may not know the folder.

    Returns:
        The first logger's ``log_dir``, or ``<save_dir>/<name>/<version>`` for one that has none, as
        ``ModelCheckpoint`` does; ``default_root_dir`` without a logger.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger: Any = trainer.loggers[0]
    if getattr(logger, "log_dir", None):
        return Path(logger.log_dir)
    version = f"version_{logger.version}" if isinstance(logger.version, int) else logger.version
    inside = [str(part) for part in (logger.name, version) if part]
    return Path(logger.save_dir or trainer.default_root_dir, *inside)


def plain_settings(**settings: Any) -> dict[str, Any]:
    """Settings as nested dicts of numbers, texts and lists; an object becomes its class's name and its arguments.

    Args:
        **settings: of an object, the attributes are taken that are named as the arguments of its class.

    Example:
        >>> from lightning_taylor.plan import OneShot
        >>> plain_settings(schedule=OneShot(step=3), ignore=("fc",), guard=None)
        {'schedule': {'class': 'OneShot', 'step': 3, 'at': None, 'unit': 'fit'}, 'ignore': ['fc'], 'guard': None}
    """
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > _DEEPEST:
        return type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value]
    names = [name for name in inspect.signature(type(value).__init__).parameters if hasattr(value, name)]
    return {"class": type(value).__name__, **{name: _plain(getattr(value, name), depth + 1) for name in names}}


def _each(trainer: Trainer, what: str, tell: Callable[[Any], object]) -> None:
    """Tell every logger; what one of them raises is a warning that names it."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        try:
            tell(logger)
        except Exception as error:
            name = type(logger).__name__
            warnings.warn(f"{name} did not take {what} of {NAME}: {type(error).__name__}: {error}", stacklevel=3)


def _figures(trainer: Trainer, summary: PruningSummary) -> Mapping[str, Any]:
    """The pictures, if any logger shows them and they can be drawn."""
    try:
        if not any(can_draw(logger) for logger in trainer.loggers):
            return {}
        if importlib.util.find_spec("matplotlib"):
            return figures(summary)
    except Exception as error:
        warnings.warn(f"the pictures of {NAME} could not be drawn: {type(error).__name__}: {error}", stacklevel=3)
        return {}
    rank_zero_info(f"{NAME} logs pictures where matplotlib is there: pip install 'lightning-taylor[plots]'")
    return {}


def _step(trainer: Trainer) -> int:
    # Not global_step: with several optimizers each of them counts there, and Lightning does not log by it.
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _may_log_settings(trainer: Trainer) -> bool:
    return getattr(trainer, "enable_autolog_hparams", True)


def _hyperparameters(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """What Lightning is about to log by itself: those that were saved with ``logger=True``."""
    found: dict[str, Any] = {}
    for owner in (pl_module, trainer.datamodule):
        if owner is not None and getattr(owner, "_log_hyperparams", False):
            found |= owner.hparams_initial
    return {name: value for name, value in found.items() if name != "_class_path"}  # LightningCLI's own


def _takes_metrics(logger: Any) -> bool:
    return "metrics" in inspect.signature(logger.log_hyperparams).parameters


def _sizes(size: Size) -> dict[str, float]:
    # In single precision, as Lightning logs them at every step: two values of one step must not differ.
    remain = {f"pruning/{name}": torch.tensor(value).item() for name, value in size.fractions.items()}
    return {**remain, **{f"pruning_width/{layer}": width for layer, width in size.widths.items()}}


def _scalars(trainer: Trainer, values: Mapping[str, float]) -> None:
    step, row = _step(trainer), {**values, "epoch": trainer.current_epoch}  # as Lightning's own rows have it

    def tell(logger: Any) -> None:
        logger.log_metrics(dict(row), step=step)
        logger.save()

    _each(trainer, "the scalars", tell)


@final
class FitLog:
    """One fit's news; events are told where they happen."""

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}
        self._started = False

    def fit_starts(self, trainer: Trainer, pl_module: LightningModule, settings: Mapping[str, Any]) -> None:
        """Add the settings to the hyperparameters that are logged.

        Args:
            trainer: whose loggers these are.
            pl_module: with hyperparameters of its own.
            settings: name -> value, of any type.
        """
        self._settings = plain_settings(**settings)
        self._started = False
        log_settings(trainer, pl_module, self._settings)

    def batch_ends(self, trainer: Trainer, pl_module: LightningModule, session: Session) -> None:
        """Log the dense model's size, once, before anything is removed from it."""
        if session.traced and not self._started:
            self._started = True
            log_start(trainer, pl_module, self._settings, session.size)

    def fit_ends(
        self, trainer: Trainer, pl_module: LightningModule, session: Session, *, measure_latency: bool
    ) -> None:
        """Say what was asked and what was achieved: on the screen, in files, to the loggers."""
        if not session.reached:
            rank_zero_warn(session.shortfall)
        clear_screen(trainer, pl_module, summarize=session.changed)
        paths, device = free_paths(report_folder(trainer)), trainer.strategy.root_device
        written = _last_checkpoint(trainer)
        summary = session.show(*paths, measure_latency=measure_latency, device=device, checkpoint=written)
        log_summary(trainer, summary, paths)

    def interrupted(self, trainer: Trainer, pl_module: LightningModule, session: Session) -> None:
        """Report a network at its target that Ctrl-C stopped in fine-tuning, and say how to go on.

        Nothing is timed: who pressed Ctrl-C does not want to wait.
        """
        if not session.traced:
            return
        if session.reached and session.changed:
            self.fit_ends(trainer, pl_module, session, measure_latency=False)
        rank_zero_info(f"{NAME} was stopped at step {session.progress.step}, {_how_to_go_on(trainer)}")


def _last_checkpoint(trainer: Trainer) -> str:
    """Return the path of the latest checkpoint that the Trainer's callbacks know of; empty if there is none."""
    callbacks: list[Any] = trainer.checkpoint_callbacks
    paths = [getattr(c, name, "") for c in callbacks for name in ("last_model_path", "best_model_path")]
    written = [path for path in paths if path and Path(path).is_file()]
    return max(written, key=lambda path: Path(path).stat().st_mtime, default="")


def _how_to_go_on(trainer: Trainer) -> str:
    if written := _last_checkpoint(trainer):
        return f"and goes on from {written}: give it as ckpt_path, or with --ckpt_path on the command line"
    return "before the first checkpoint was written: ModelCheckpoint(every_n_train_steps=...) writes some"
