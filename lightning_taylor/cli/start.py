"""The network with which a fit begins, as a checkpoint: for who has a configuration and has not trained yet."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from lightning_taylor.cli.dry_fit import SeenError, Visitor, visit
from lightning_taylor.cli.failure import fail
from lightning_taylor.cli.fit_config import FitConfig

__all__ = ["start_checkpoint"]


def start_checkpoint(config: FitConfig, path: Path) -> Path:
    """Build what a configuration describes, as its fit would, and save it before the first step.

    Its weights are those that the module loads, or random ones, the same every time: the seed is the configuration's,
    or 0.

    Args:
        config: of the fit.
        path: the file; its folder is made. A file of that name is replaced.

    Raises:
        SystemExit: for a mistake in the configuration.
    """
    seed = config.content.get("seed_everything")
    saving = _Saving(path)
    visit([*config.args, f"--seed_everything={0 if isinstance(seed, bool) else seed}"], saving)
    if not saving.saved:
        fail(1, f"{config.name}: the fit ended before its first step: is the training set empty?")
    return path


class _Saving(Visitor):
    """Saves the model when the fit begins, and ends the fit."""

    def __init__(self, path: Path) -> None:
        self.saved = False
        self._path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train begins: the model is built, and whatever it makes ready for a fit is ready."""
        trainer.save_checkpoint(self._path, weights_only=True)
        self.saved = True
        raise SeenError
