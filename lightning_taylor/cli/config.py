"""The configuration of a fit, for commands that run none or many: its model, its data, its ``TaylorPruning``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from lightning_taylor.cli.classes import PARTS, classless, missing_class, with_class, with_classes_first
from lightning_taylor.cli.exit import debugging, fail
from lightning_taylor.cli.extras import require_extras_of_data
from lightning_taylor.cli.lightning_cli import TaylorCLI
from lightning_taylor.cli.messages import readable
from lightning_taylor.cli.shipped_configs import config_path
from lightning_taylor.fit.callback import TaylorPruning

__all__ = [
    "FitConfig",
    "read_config",
]


@dataclass(frozen=True)
class FitConfig:
    """A YAML file for ``lightning-taylor fit``, or for a LightningCLI of one's own.

    Attributes:
        name: the file as it was named, or what a configuration that ships is called.
        path: of the file.
        options: of ``lightning-taylor fit``, which override what is written.
        written: what is in it, with the names as they are there.
        content: the same as ``fit`` understands it, with every default, and with classes by their import paths. Where
            nobody names the class of the model or of the data, ``fit`` does not understand it, and this is ``written``,
            with the class of the other one.
    """

    name: str
    path: str
    options: tuple[str, ...]
    written: Mapping[str, Any]
    content: Mapping[str, Any]

    @property
    def args(self) -> list[str]:
        """The command line of ``lightning-taylor`` that it stands for."""
        return with_classes_first(["fit", "--config", self.path, *self.options])

    @property
    def class_path(self) -> str | None:
        """The import path of the model's class, if there is one."""
        return self.content["model"].get("class_path")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model is built with."""
        model = self.content["model"]
        return dict((model.get("init_args") or {}) if "class_path" in model else model)

    @property
    def has_data(self) -> bool:
        """Whether it names the class of a data module."""
        data = self.content.get("data")
        return isinstance(data, str) or (isinstance(data, dict) and "class_path" in data)

    def require_data(self) -> None:
        """End the command if no data module is named."""
        if not self.has_data:
            if classless(self.content, "data"):
                missing_class(self.name, "data")
            lacks = _without("data", self.written)
            fail(2, f"{self.name} {lacks}: training data is needed, so name the data module as for `fit`")

    def data_module(self) -> Any:
        """The data module, before its ``prepare_data`` and ``setup``."""
        return self._built(LightningDataModule, "data", _with_class(self.content["data"]))

    def pruning(self) -> TaylorPruning | None:
        """The ``TaylorPruning`` among the callbacks, with its settings; None if there is none."""
        callbacks = (self.content.get("trainer") or {}).get("callbacks") or []
        for given in callbacks if isinstance(callbacks, list) else [callbacks]:
            plain = _with_class(given)
            if plain["class_path"].rpartition(".")[2] == TaylorPruning.__name__:
                return self._built(Callback, "callbacks", plain)
        return None

    def _built(self, kind: type, key: str, plain: dict[str, Any]) -> Any:
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(kind, key)
        try:
            return parser.instantiate(parser.parse_object({key: plain}))[key]
        except Exception as error:  # of jsonargparse's or of the class's own
            if debugging():
                raise
            fail(2, f"{self.name}: {readable(str(error))}")


def read_config(
    named: str, options: Sequence[str] = (), *, model: str | None = None, data: str | None = None
) -> FitConfig:
    """Read the configuration of a fit.

    Args:
        named: a file, or the name of a configuration that ships.
        options: of ``lightning-taylor fit``, which override it.
        model: the import path of the model's class, in the place of the one that is written, if any is.
        data: the same for the data module.

    Raises:
        SystemExit: with 2, after a line or two on stderr with the file, the key and the names it could have meant.
    """
    path = config_path(named)
    written = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    classes = {part: class_path for part, class_path in zip(PARTS, (model, data), strict=True) if class_path}
    part = written.get("model")
    if model is None and (not part or not isinstance(part, dict | str)):
        expected = "expected a configuration of a fit, such as the config.yaml beside its logs"
        fail(2, f"{named} {_without('model', written)}: {expected}")
    content = {**written, **{part: with_class(written.get(part), path) for part, path in classes.items()}}
    options = (*(f"--{part}={class_path}" for part, class_path in classes.items()), *options)
    config = FitConfig(named, path, options, written, content)
    if not any(classless(content, part) for part in PARTS):
        config = replace(config, content=_Understood(config.args).config["fit"].as_dict())
    require_extras_of_data(config.content.get("data"))
    return config


def _with_class(given: Any) -> dict[str, Any]:
    return {"class_path": given} if isinstance(given, str) else dict(given)


def _without(key: str, written: Mapping[str, Any]) -> str:
    """What there is in place of a key, in words."""
    near = get_close_matches(key, map(str, written), n=1, cutoff=0.6)
    return f"has no `{key}`, but `{near[0]}`" if near else f"has no `{key}`, only {', '.join(map(repr, written))}"


class _Understood(TaylorCLI):
    """Reads a configuration as ``fit`` does, and builds nothing."""

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint is read by who asked for the configuration."""

    def _set_seed(self) -> None:
        """Nothing: a command has seeds of its own."""

    def instantiate_classes(self) -> None:
        """Nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""
