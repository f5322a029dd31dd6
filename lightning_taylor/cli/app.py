"""``lightning-taylor fit | validate | test | predict``, by LightningCLI, and the way to the other commands.

``lightning-taylor fit`` alone runs the main job, the shipped configuration ``digits``.
"""

from __future__ import annotations

import linecache
import logging
import os
import pickle
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lightning_taylor.cli.commands import COMMANDS, run_command
from lightning_taylor.cli.configs import resolve_configs, shipped_configs
from lightning_taylor.cli.failure import debugging, fail
from lightning_taylor.cli.messages import options_of, readable
from lightning_taylor.cli.nested_help import show_nested_help
from lightning_taylor.errors import PruningError

__all__ = ["TaylorCLI", "main"]

DESCRIPTION = (
    "Prune a network while it trains. `lightning-taylor fit` alone runs a small example. "
    f"Commands beside the ones below: {'; '.join(f'{name}: {what}' for name, what in COMMANDS.items())}."
)
EXTRAS = ("jsonargparse", "docstring_parser", "sklearn")
WARNINGS = (
    # The recipes' small data lies in memory: worker processes would slow it down.
    "The '.*_dataloader' does not have many workers",
    # A checkpoint is evaluated into a folder of its own.
    "The dirpath has changed from",
    # Lightning's own use of a name that torch is about to drop.
    ".*LeafSpec.*is deprecated",
)
CONFIG = ("--config", "-c")
OTHER_NET = "Error(s) in loading state_dict for "
"""How torch begins what it says."""
LONGEST = 240
CHATTER = re.compile("💡 Tip: |TPU available: False|Loading `train_dataloader` to estimate")
"""Warnings, and lines of Lightning's log, that a user can do nothing about."""
LOGS = ("lightning.pytorch.utilities.rank_zero", "pytorch_lightning.utilities.rank_zero")
"""Where both names of Lightning are imported, both write to the log of the one that came last."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a subcommand of ``lightning-taylor``.

    Args:
        args: the command line without the program's name; by default ``sys.argv[1:]``.

    Raises:
        SystemExit: with 2 for a mistake on the command line or in a configuration, with 1 if an extra is missing, the
            model cannot be pruned or Ctrl-C stopped the run; the message is on stderr. With ``JSONARGPARSE_DEBUG=true``
            in the environment, a mistake raises what it raised.
    """
    if missing := [name for name in EXTRAS if find_spec(name) is None]:
        fail(1, f"missing {', '.join(missing)}: pip install 'lightning-taylor[cli,recipes]'")
    try:
        with _quiet(), _from_here():
            _dispatch(list(sys.argv[1:] if args is None else args))
    except KeyboardInterrupt:
        fail(1, "interrupted")
    except PruningError as error:
        fail(1, str(error))
    except Exception as error:
        if not debugging() and str(error).startswith(OTHER_NET):
            fail(2, f"the checkpoint is of another network than the configuration's model: {_shortly(error)}")
        if not _says_what_to_change(error):
            raise
        fail(2, str(error))


def _shortly(error: Exception) -> str:
    """What torch says about a state dict that does not fit, cut where it lists every tensor."""
    said = " ".join(str(error).removeprefix(OTHER_NET).split())
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def _dispatch(args: list[str]) -> None:
    if args and args[0] in COMMANDS:
        run_command(args[0], args[1:])
    elif not show_nested_help(args):
        TaylorCLI(resolve_configs(args))


class TaylorCLI(LightningCLI):
    """LightningCLI for any model and any data, with a CSV logger by default and the predictions in a file.

    Args:
        args: the command line without the program's name.
    """

    def __init__(self, args: list[str]) -> None:
        for module in ("birds", "classifier", "clip_classifier", "clips", "digits", "folder", "torchvision_data"):
            import_module(f"lightning_taylor.recipes.{module}")
        super().__init__(
            LightningModule,  # and no class of data: a module may have loaders of its own
            subclass_mode_model=True,
            parser_class=_Parser,
            parser_kwargs={
                "prog": "lightning-taylor",
                "description": DESCRIPTION,
                "version": metadata.version("lightning-taylor"),
                # Else --trainer.max_epoch would be taken for --trainer.max_epochs, and --trainer.max for an error.
                "allow_abbrev": False,
            },
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what ``main`` was given; LightningCLI's own version warns if ``sys.argv`` is not empty."""
        parser.args = list(args)
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Take over what the checkpoint says about its model; a file that is none is a mistake on the command line."""
        try:
            super()._parse_ckpt_path()
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            if debugging():
                raise
            path = self.config[self.config.subcommand].ckpt_path
            fail(2, f"{path} is no checkpoint of tensors and plain values, or is damaged")

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a value that one of them refuses is a mistake on the command line."""
        try:
            super().instantiate_classes()
        except (ValueError, FileNotFoundError) as error:
            if debugging():
                raise
            fail(2, readable(str(error)))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, which logs to ``<default_root_dir>/lightning_logs/version_<n>`` unless told otherwise."""
        asked = self._get(self.config_init, "trainer")
        if asked["logger"] in (None, True):
            kwargs["logger"] = CSVLogger(asked["default_root_dir"] or ".")
        elif not asked["logger"]:
            # There is no folder of this run: a config.yaml of the last one, or the user's own, would be in the way.
            self.save_config_callback = None
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and leave the list of the batches' predictions where the logs are."""
        predictions = self.trainer.predict(**kwargs)
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        if predictions and self.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(predictions, folder / "predictions.pt")
            print(f"predictions of {len(predictions)} batches: {folder / 'predictions.pt'}")


class _Parser(LightningArgumentParser):
    """Says in a line or two what is wrong, and in which file, where the host prints every option there is."""

    args: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # Without exit_on_error this is a nested parser, which has to raise.
        if not self.exit_on_error or debugging():
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        said = readable(message, options_of(parser))
        fail(2, f"{_file_of(said, self.args)}{said}\n`{command} --help` lists the options")


def _file_of(said: str, args: Sequence[str]) -> str:
    """The user's configurations, in front of a mistake in a setting that no option on the command line is about."""
    pairs = zip(["", *args], args, strict=False)
    named = [arg.removeprefix("--config=") for before, arg in pairs if before in CONFIG or arg.startswith("--config=")]
    own = [name for name in named if Path(name) not in shipped_configs().values()]
    typed = {re.split("[.=+]", arg.removeprefix("--"))[0] for arg in args if arg.startswith("--")}
    part = re.match(r"no option '(\w+)|(\w+)[\w.]*:", said)
    return f"{' or '.join(own)}: " if own and part and (part[1] or part[2]) not in typed else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out, for as long as a command runs, what its user can do nothing about."""

    def keep(record: logging.LogRecord) -> bool:
        return not CHATTER.match(record.getMessage())

    logs = [logging.getLogger(name) for name in LOGS]
    for log in logs:
        log.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "|".join(WARNINGS))
            yield
    finally:
        for log in logs:
            log.removeFilter(keep)


@contextmanager
def _from_here() -> Iterator[None]:
    """Let import paths begin in the folder that the command is called from, where a console script does not look."""
    here = os.getcwd()
    new = here not in sys.path
    if new:
        sys.path.append(here)
    try:
        yield
    finally:
        if new:
            sys.path.remove(here)


def _says_what_to_change(error: Exception) -> bool:
    """Whether ours or Lightning's code raised it on purpose; anything else is a bug and keeps its traceback."""
    if debugging() or not isinstance(error, ValueError | FileNotFoundError | MisconfigurationException):
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    raises = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")
    return raises and frame.f_globals.get("__name__", "").split(".")[0] in ("lightning_taylor", "lightning")
