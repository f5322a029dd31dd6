"""The options of the commands that no Trainer runs, and mistakes in them answered in a line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from lightning_taylor.cli.exit import fail, nearest
from lightning_taylor.cli.shipped_configs import config_path

__all__ = ["Parser", "add_model_options", "add_trust", "one_of", "positive"]


class Parser(argparse.ArgumentParser):
    """argparse, with the names that were meant.

    Args:
        command: the subcommand that it reads the options of.
        description: what the command does.
        epilog: examples, shown as they are.
    """

    def __init__(self, command: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"lightning-taylor {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """Parse a command line; a mistyped option before all else, since it may be the one that is then missing."""
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        for name in (word.split("=")[0] for word in args if word.startswith("--")):
            if name not in known:
                self.error(f"no option {name!r}{nearest(name, known)}")
        return super().parse_args(args)

    def error(self, message: str) -> NoReturn:
        """Say it in a line, and leave with 2."""
        said = re.sub(r"^argument ([^:]+): ", r"\1: ", message)
        fail(2, f"{said}\n`{self.prog} --help` lists the options")


def one_of(*known: str) -> Callable[[str], str]:
    """A type for ``add_argument``: one of a few words, and the nearest one for a typo."""

    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}{nearest(text, known)}")
        return text

    return parse


def positive(text: str) -> int:
    """A type for ``add_argument``: a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _config(text: str) -> str:
    config_path(text)  # ends the command if there is none
    return text


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what a checkpoint does not: which class, which part of it, which inputs."""
    group = parser.add_argument_group("what the checkpoint does not say")
    group.add_argument(
        "--model",
        metavar="CLASS|CONFIG",
        help="the LightningModule's import path, as in my_project.nets.Net, or the config.yaml of the fit, whose data "
        "then gives the inputs too; not needed for the modules that come with lightning-taylor",
    )
    group.add_argument(
        "--config",
        "-c",
        type=_config,
        metavar="CONFIG",
        help="the same as --model with a configuration; together with --model CLASS where the YAML of a LightningCLI "
        "project gives the model's settings without its class",
    )
    group.add_argument(
        "--data", metavar="CLASS", help="the data module's import path where the YAML gives only its settings"
    )
    group.add_argument(
        "--input-shape",
        metavar="N",
        type=positive,
        nargs="+",
        action="append",
        help="shape of an input, the number of examples first: 1 3 224 224; once for each input of forward. Random "
        "numbers are put in. By default a batch of the config's data, or the module's example_input_array",
    )
    group.add_argument(
        "--submodule", metavar="NAME", help="take only this part of the LightningModule, such as net, and its forward"
    )
    add_trust(group)


def add_trust(parser: argparse._ActionsContainer) -> None:
    """The option to load a checkpoint that may do harm."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a checkpoint that holds more than tensors and plain values: it can run any code",
    )
