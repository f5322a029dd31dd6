"""How one logger is shown what is no scalar; each function is a no-op for a logger that cannot show such a thing.

Told apart by what they offer: TensorBoard's writer has ``add_*``, W&B's logger ``log_image`` and ``log_table``,
MLflow's logger a ``run_id``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_taylor.report.summary import PruningSummary
from lightning_taylor.report.summary_table import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "can_draw",
    "keep_files",
    "show_figure",
    "show_histograms",
    "show_tables",
]


def show_histograms(logger: Any, scores: Mapping[str, Tensor], step: int) -> None:
    """The scores of each group, to TensorBoard and W&B.

    Args:
        logger: any.
        scores: group -> shape ``(C,)``.
        step: on the logger's step axis.
    """
    if _is_tensorboard(logger):
        for group, score_C in scores.items():
            logger.experiment.add_histogram(f"pruning_scores/{group}", score_C, step)
    elif _is_wandb(logger) and scores:
        import wandb

        logger.log_metrics({f"pruning_scores/{g}": wandb.Histogram(s_C.tolist()) for g, s_C in scores.items()}, step)


def can_draw(logger: Any) -> bool:
    """Whether ``show_figure`` shows anything."""
    return _is_tensorboard(logger) or _is_wandb(logger) or _is_mlflow(logger)


def show_figure(logger: Any, name: str, figure: Figure, step: int) -> None:
    """A picture, to TensorBoard, W&B and MLflow."""
    if _is_tensorboard(logger):
        logger.experiment.add_figure(f"pruning/figures/{name}", figure, step, close=False)
    elif _is_wandb(logger):
        logger.log_image(f"pruning/figures/{name}", [figure], step=step)
    elif _is_mlflow(logger):
        logger.experiment.log_figure(logger.run_id, figure, f"pruning/figures/{name}.png")


def show_tables(logger: Any, summary: PruningSummary, step: int) -> None:
    """Layers, events and what is frozen: as tables to W&B and MLflow, within the summary's text to TensorBoard."""
    if _is_tensorboard(logger):
        logger.experiment.add_text("pruning/summary", render(summary), step)
    elif _is_wandb(logger):
        for name, (columns, rows) in _tables(summary).items():
            logger.log_table(f"pruning/tables/{name}", columns=columns, data=rows, step=step)
    elif _is_mlflow(logger):
        logger.experiment.log_text(logger.run_id, render(summary), "pruning/summary.md")
        for name, (columns, rows) in _tables(summary).items():
            data = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
            logger.experiment.log_table(logger.run_id, data=data, artifact_file=f"pruning/tables/{name}.json")


def keep_files(logger: Any, paths: Sequence[Path], step: int) -> None:
    """Copies of the files, to W&B (which shows the page as well) and MLflow; others find them in the log directory."""
    if _is_mlflow(logger):
        for path in paths:
            logger.experiment.log_artifact(logger.run_id, str(path), "pruning")
    elif _is_wandb(logger):
        import wandb

        for path in paths:
            logger.experiment.save(str(path), base_path=str(path.parent), policy="now")
            if path.suffix == ".html":
                logger.log_metrics({"pruning/report": wandb.Html(path.read_text(encoding="utf-8"))}, step)


def _tables(summary: PruningSummary) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Name -> columns and rows; without those that have no row."""
    layers = [[layer.layer, layer.before, layer.after] for layer in summary.layers]
    columns = list(dict.fromkeys(name for event in summary.events for name in event))
    events = [[event.get(name) for name in columns] for event in summary.events]
    frozen = [[layer, reason] for layer, reason in summary.frozen.items()]
    tables = {
        "layers": (["layer", "dense", "pruned"], layers),
        "events": (columns, events),
        "frozen": (["layer", "reason"], frozen),
    }
    return {name: (head, rows) for name, (head, rows) in tables.items() if rows}


def _is_tensorboard(logger: Any) -> bool:
    writer = getattr(logger, "experiment", None)
    return all(hasattr(writer, name) for name in ("add_histogram", "add_figure", "add_text"))


def _is_wandb(logger: Any) -> bool:
    return all(hasattr(logger, name) for name in ("log_image", "log_table"))


def _is_mlflow(logger: Any) -> bool:
    return hasattr(logger, "run_id") and hasattr(logger.experiment, "log_artifact")
