"""``lightning-taylor fit | validate | test | predict``, by LightningCLI, and the way to the other commands.

``lightning-taylor fit`` alone runs the main job, the shipped configuration ``digits``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lightning_taylor.cli.commands import EXAMPLES_OF_FIT
from lightning_taylor.cli.exit import debugging, fail
from lightning_taylor.cli.extras import require_extras_of_data
from lightning_taylor.cli.importing import without_fits
from lightning_taylor.cli.messages import options_of, readable
from lightning_taylor.cli.shipped_configs import shipped_configs
from lightning_taylor.cli.short_forms import SHORT_FORMS
from lightning_taylor.fit import TaylorPruning

__all__ = [
    "TaylorCLI",
    "show_nested_help",
]

CONFIG = ("--config", "-c")


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
                "description": "Prune a network while it trains.",
                "version": metadata.version("lightning-taylor"),
                # Else --trainer.max_epoch would be taken for --trainer.max_epochs, and --trainer.max for an error.
                "allow_abbrev": False,
                "fit": {"usage": "lightning-taylor fit [options]"},
            },
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what ``main`` was given; LightningCLI's own version warns if ``sys.argv`` is not empty."""
        parser.args = list(args)
        with without_fits():
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
        require_extras_of_data(self._get(self.config, "data"))
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

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Begin the help on ``fit`` with examples."""
        text = super().format_help(*args, **kwargs)
        return f"{EXAMPLES_OF_FIT}\n\n{text}" if self.usage and "fit" in self.usage else text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # Without exit_on_error this is a nested parser, which has to raise.
        if not self.exit_on_error or debugging():
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        said = readable(message, [*options_of(parser), *SHORT_FORMS])
        fail(2, f"{_file_of(said, self.args)}{said}\n`{command} --help` lists the options")


def _file_of(said: str, args: Sequence[str]) -> str:
    """The user's configurations, in front of a mistake in a setting that no option on the command line is about."""
    pairs = zip(["", *args], args, strict=False)
    named = [arg.removeprefix("--config=") for before, arg in pairs if before in CONFIG or arg.startswith("--config=")]
    own = [name for name in named if Path(name) not in shipped_configs().values()]
    typed = {re.split("[.=+]", arg.removeprefix("--"))[0] for arg in args if arg.startswith("--")}
    part = re.match(r"no option '(\w+)|(\w+)[\w.]*:", said)
    return f"{' or '.join(own)}: " if own and part and (part[1] or part[2]) not in typed else ""


def show_nested_help(args: Sequence[str]) -> bool:
    """Print the help that a command line asks for, if it is of this kind.

    Returns:
        Whether it was.
    """
    hints = get_type_hints(TaylorPruning.__init__)
    for arg in args:
        hit = re.fullmatch(r"--(trainer\.callbacks\.(\w+))\.help", arg)
        kind = next(filter(is_dataclass, get_args(hints.get(hit[2]))), None) if hit else None
        if hit and isinstance(kind, type):
            parser = ArgumentParser(prog="lightning-taylor fit", usage="%(prog)s [options]", add_help=False)
            parser.add_class_arguments(kind, hit[1])
            parser.print_help()
            return True
    return False
