"""The console script: ``lightning-taylor fit | validate | test | predict``, by LightningCLI.

``lightning-taylor fit`` alone runs the main job, the shipped configuration ``digits``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lightning_taylor.errors import PruningError

__all__ = ["TaylorCLI", "main", "shipped_configs"]

DEFAULT = "digits"
EXTRAS = ("jsonargparse", "docstring_parser", "sklearn")
NOISE = (
    # The recipes' small data lies in memory: worker processes would slow it down.
    "The '.*_dataloader' does not have many workers",
    # Lightning's own use of a name that torch is about to drop.
    ".*LeafSpec.*is deprecated",
)
"""Warnings that a user can do nothing about."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a subcommand of ``lightning-taylor``.

    Args:
        args: the command line without the program's name; by default ``sys.argv[1:]``.

    Raises:
        SystemExit: with 2 for a mistake on the command line, with 1 if an extra is missing or the model cannot be
            pruned; the message is on stderr.
    """
    if missing := [name for name in EXTRAS if find_spec(name) is None]:
        _exit(1, f"missing {', '.join(missing)}: pip install 'lightning-taylor[cli,recipes]'")
    arguments = _resolve_configs(list(sys.argv[1:] if args is None else args))
    with warnings.catch_warnings():
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        try:
            TaylorCLI(arguments)
        except PruningError as error:
            _exit(1, str(error))


def shipped_configs() -> dict[str, Path]:
    """Name -> path of the configurations that come with the package.

    Example:
        >>> "digits" in shipped_configs()
        True
    """
    folder = Path(str(files("lightning_taylor.recipes") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


class TaylorCLI(LightningCLI):
    """LightningCLI for any model and any data, with a CSV logger by default and the predictions in a file.

    Args:
        args: the command line without the program's name.
    """

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_kwargs={"prog": "lightning-taylor", "description": "Prune a network while it trains."},
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what ``main`` was given; LightningCLI's own version warns if ``sys.argv`` is not empty."""
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a value that one of them refuses is a mistake on the command line."""
        try:
            super().instantiate_classes()
        except (ValueError, FileNotFoundError) as error:
            self.parser.error(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, which logs to ``<default_root_dir>/lightning_logs/version_<n>`` unless told otherwise."""
        asked = self._get(self.config_init, "trainer")
        if asked["logger"] in (None, True):
            kwargs["logger"] = CSVLogger(asked["default_root_dir"] or ".")
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and leave the list of the batches' predictions where the logs are."""
        predictions = self.trainer.predict(**kwargs)
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        if predictions and self.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(predictions, folder / "predictions.pt")
            print(f"predictions of {len(predictions)} batches: {folder / 'predictions.pt'}")


def _resolve_configs(args: list[str]) -> list[str]:
    """The command line with paths in place of the shipped configurations' names, and the main job's if it has none."""
    resolved, names_config = [], False
    for position, arg in enumerate(args):
        previous = args[position - 1] if position else ""
        if previous in ("--config", "-c"):
            arg = _config_path(arg)
        elif arg.startswith("--config="):
            arg = "--config=" + _config_path(arg.removeprefix("--config="))
        names_config |= arg in ("--config", "-c") or arg.startswith("--config=")
        resolved.append(arg)
    # Who chooses a model or data has left the main job: its callbacks would only be in the way.
    chooses = any(arg in ("--model", "--data") or arg.startswith(("--model=", "--data=")) for arg in args)
    if args and args[0] in TaylorCLI.subcommands() and not names_config and not chooses:
        resolved[1:1] = ["--config", str(shipped_configs()[DEFAULT])]
    return resolved


def _config_path(value: str) -> str:
    """A path as it is; a shipped configuration's path for its name."""
    if Path(value).is_file():
        return value
    shipped = shipped_configs()
    if value not in shipped:
        _exit(2, f"no configuration {value!r}: no such file, and the ones that ship are {', '.join(shipped)}")
    return str(shipped[value])


def _exit(code: int, message: str) -> NoReturn:
    print(f"lightning-taylor: error: {message}", file=sys.stderr)
    raise SystemExit(code)
