"""Configurations: those that ship with the package go by their names."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from lightning_taylor.cli.commands import TRAINER_COMMANDS
from lightning_taylor.cli.exit import fail

__all__ = [
    "config_path",
    "is_config",
    "resolve_configs",
    "shipped_configs",
]

DEFAULT = "digits"


def shipped_configs() -> dict[str, Path]:
    """Name -> path of the configurations that come with the package.

    Example:
        >>> "digits" in shipped_configs()
        True
    """
    folder = Path(str(files("lightning_taylor.recipes") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def resolve_configs(args: list[str]) -> list[str]:
    """The command line with paths in place of the shipped configurations' names, and the main job's if it has none."""
    resolved, names_config = [], False
    args = list(_without_configs_as_models(args))
    for position, arg in enumerate(args):
        previous = args[position - 1] if position else ""
        if previous in ("--config", "-c"):
            arg = config_path(arg)
        elif arg.startswith("--config="):
            arg = "--config=" + config_path(arg.removeprefix("--config="))
        names_config |= arg in ("--config", "-c") or arg.startswith("--config=")
        resolved.append(arg)
    # Who chooses a model or data has left the main job: its callbacks would only be in the way.
    chooses = any(arg in ("--model", "--data") or arg.startswith(("--model=", "--data=")) for arg in args)
    if args and args[0] in TRAINER_COMMANDS and not names_config and not chooses:
        resolved[1:1] = ["--config", str(shipped_configs()[DEFAULT])]
    return resolved


def _without_configs_as_models(args: list[str]) -> Iterator[str]:
    """Yield the command line with ``--config`` where ``--model`` names a configuration."""
    for position, arg in enumerate(args):
        if arg == "--model" and is_config("".join(args[position + 1 : position + 2])):
            yield "--config"
        elif arg.startswith("--model=") and is_config(arg.removeprefix("--model=")):
            yield arg.replace("--model=", "--config=", 1)
        else:
            yield arg


def is_config(value: str) -> bool:
    """Whether ``--model`` names a configuration rather than a class."""
    return value in shipped_configs() or value.endswith((".yaml", ".yml")) or Path(value).is_file()


def config_path(value: str) -> str:
    """A path as it is; a shipped configuration's path for its name."""
    if Path(value).is_file():
        _check_yaml(value)
        return value
    if Path(value).is_dir():
        fail(2, f"{value} is a folder: give the configuration in it, such as {Path(value) / 'config.yaml'}")
    shipped = shipped_configs()
    if value not in shipped:
        beside = [str(path) for path in Path(value).parent.glob("*.y*ml")]
        near = get_close_matches(value, [*shipped, *beside], n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        fail(2, f"no configuration {value!r}: no such file, and the ones that ship are {', '.join(shipped)}{meant}")
    return str(shipped[value])


def _check_yaml(path: str) -> None:
    """Refuse what is no configuration by the name of its file, which jsonargparse does not tell."""
    import yaml  # half of the time that --version would take

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(2, f"{path} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict):
        fail(2, f"{path} holds no settings: expected names with values, as --print_config prints them")
