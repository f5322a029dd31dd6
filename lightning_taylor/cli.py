"""The console script: ``lightning-taylor fit | validate | test | predict``, by LightningCLI.

``lightning-taylor fit`` alone runs the main job, the shipped configuration ``digits``.
"""

from __future__ import annotations

import inspect
import linecache
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module, metadata
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lightning_taylor.errors import PruningError

__all__ = ["TaylorCLI", "main", "shipped_configs"]

DEFAULT = "digits"
DEBUG = "JSONARGPARSE_DEBUG"
"""jsonargparse's own switch: as an environment variable, "true" turns its messages into tracebacks, and ours too."""
EXTRAS = ("jsonargparse", "docstring_parser", "sklearn")
RECIPES = ("ImageClassifier", "Digits", "ImageFolder", "Flowers102", "CIFAR10")  # imported, so known without a path
WARNINGS = (
    # The recipes' small data lies in memory: worker processes would slow it down.
    "The '.*_dataloader' does not have many workers",
    # A checkpoint is evaluated into a folder of its own.
    "The dirpath has changed from",
    # Lightning's own use of a name that torch is about to drop.
    ".*LeafSpec.*is deprecated",
)
CHATTER = re.compile("💡 Tip: |TPU available: False|Loading `train_dataloader` to estimate")
"""Warnings, and lines of Lightning's log, that a user can do nothing about."""
BOILERPLATE = re.compile(
    r"Does not validate against|Subtypes: |Errors:$|Given value|Not a valid subclass of|Subclass types expect|"
    r"a class path \(str\)|a dict with|Expected a <class 'NoneType'>|Expected a path but "
)
"""Lines of jsonargparse's messages about a union that are true of every wrong value."""


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
        _exit(1, f"missing {', '.join(missing)}: pip install 'lightning-taylor[cli,recipes]'")
    try:
        with _quiet():
            TaylorCLI(_resolve_configs(list(sys.argv[1:] if args is None else args)))
    except KeyboardInterrupt:
        _exit(1, "interrupted")
    except PruningError as error:
        _exit(1, str(error))
    except Exception as error:
        if not _says_what_to_change(error):
            raise
        _exit(2, str(error))


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
        for module in ("classifier", "digits", "folder", "torchvision_data"):
            import_module(f"lightning_taylor.recipes.{module}")
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=_Parser,
            parser_kwargs={
                "prog": "lightning-taylor",
                "description": "Prune a network while it trains. `lightning-taylor fit` alone runs a small example.",
                "version": metadata.version("lightning-taylor"),
                # Else --trainer.max_epoch would be taken for --trainer.max_epochs, and --trainer.max for an error.
                "allow_abbrev": False,
            },
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
            if _debugging():
                raise
            _exit(2, _readable(str(error)))

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
    """Says in a line or two what is wrong, where the host prints every option there is."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # Without exit_on_error this is a nested parser, which has to raise.
        if not self.exit_on_error or _debugging():
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        _exit(2, f"{_readable(message, _options(parser))}\n`{command} --help` lists the options")


def _options(parser: LightningArgumentParser) -> list[str]:
    """Every option of a parser as YAML writes it: ``trainer.max_epochs``."""
    return [name.removeprefix("--") for action in parser._actions for name in action.option_strings]


def _readable(message: str, options: Sequence[str] = ()) -> str:
    """What one of jsonargparse's messages comes to, with the nearest of the parser's options.

    About a union it says why each of its types was refused. The one that got furthest is the one that was meant.
    """
    complaints: dict[tuple[tuple[str, str], ...], list[str]] = {}
    within: list[tuple[int, tuple[str, str]]] = []
    for line in filter(str.strip, message.splitlines()):
        text = line.lstrip(" ").removeprefix("- ")
        indent = len(line) - len(line.lstrip(" "))
        within = [frame for frame in within if frame[0] < indent]
        if place := re.match(r"""(Parser key|Problem with given class_path) ["'](.+)["']:$""", text):
            within.append((indent, (place[1], place[2])))
        elif not BOILERPLATE.match(text):
            complaints.setdefault(tuple(place for _, place in within), []).append(text)
    if not complaints:
        return message
    places = max(complaints, key=len)
    key = ".".join(name for kind, name in places if kind == "Parser key")
    owner = next((name for kind, name in reversed(places) if kind != "Parser key"), "")
    texts = dict.fromkeys(_explain(text, owner, options) for text in complaints[places])
    return (f"{key}: " if key else "") + "; ".join(texts)


def _explain(text: str, owner: str, options: Sequence[str]) -> str:
    """One complaint of jsonargparse's about an argument of the class ``owner``, with the names it could have meant."""
    if hit := re.match("Option '(.+)' is not accepted$", text):
        return f"{owner.split('.')[-1]} has no option {hit[1]!r}{_nearest(hit[1], _parameters(owner))}"
    if hit := re.match("module '(.+)' has no attribute '(.+)'$", text):
        return f"{text}{_nearest(hit[2], [name for name in dir(import_module(hit[1])) if name[0] != '_'])}"
    if hit := re.match(r"Expected a dot import path string: (\S+)$", text):
        return f"no class is called {hit[1]!r}; give its import path{_nearest(hit[1], RECIPES)}"
    if hit := re.match(r"(?:Subcommand '\w+' does not accept option |unrecognized arguments: -*)'?([^\s'=]+)", text):
        if hit[1] in shipped_configs():
            return f"no option {hit[1]!r}; did you mean --config {hit[1]}?"
        near = _nearest(hit[1], options) or _nearest(hit[1].split(".")[0], options)
        return f"no option {hit[1]!r}{near}"
    if text.startswith('expected "subcommand"'):
        return f"choose one of {', '.join(TaylorCLI.subcommands())}; `lightning-taylor fit` alone runs a small example"
    return re.sub(r"(?:a )?<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def _nearest(name: str, known: Collection[str]) -> str:
    """The known names that are like a wrong one, or all of them if they are few."""
    if near := get_close_matches(name, sorted(set(known)), n=3, cutoff=0.7):
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= 15 else ""


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out, for as long as a command runs, what its user can do nothing about."""

    def keep(record: logging.LogRecord) -> bool:
        return not CHATTER.match(record.getMessage())

    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "|".join(WARNINGS))
            yield
    finally:
        log.removeFilter(keep)


def _says_what_to_change(error: Exception) -> bool:
    """Whether ours or Lightning's code raised it on purpose; anything else is a bug and keeps its traceback."""
    if _debugging() or not isinstance(error, ValueError | FileNotFoundError | MisconfigurationException):
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    raises = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")
    return raises and frame.f_globals.get("__name__", "").split(".")[0] in ("lightning_taylor", "lightning")


def _debugging() -> bool:
    return os.environ.get(DEBUG, "").lower() == "true"


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
        _check_yaml(value)
        return value
    shipped = shipped_configs()
    if value not in shipped:
        _exit(2, f"no configuration {value!r}: no such file, and the ones that ship are {', '.join(shipped)}")
    return str(shipped[value])


def _check_yaml(path: str) -> None:
    """Refuse what is no configuration by the name of its file, which jsonargparse does not tell."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        _exit(2, f"{path} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict):
        _exit(2, f"{path} holds no settings: expected names with values, as --print_config prints them")


def _exit(code: int, message: str) -> NoReturn:
    print(f"lightning-taylor: error: {message}", file=sys.stderr)
    raise SystemExit(code)
