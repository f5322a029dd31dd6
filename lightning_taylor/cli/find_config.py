"""Whether a command line names a configuration, and reading it then; only that needs jsonargparse."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_taylor.cli.exit import fail
from lightning_taylor.cli.extras import require_extras
from lightning_taylor.cli.shipped_configs import is_config

if TYPE_CHECKING:
    from lightning_taylor.cli.config import FitConfig

__all__ = ["find_config"]


def find_config(asked: argparse.Namespace, options: Sequence[str] = ()) -> FitConfig | None:
    """Find the configuration that ``--config`` or ``--model`` names; None if only a class is named, or nothing.

    Args:
        asked: the options of ``add_model_options``; a configuration that ``--model`` names moves to ``--config``.
        options: of ``lightning-taylor fit``, which override it.

    Raises:
        SystemExit: with 1 if jsonargparse is missing, with 2 for a mistake in the file; both after a line on stderr.
    """
    if asked.model is not None and is_config(asked.model):
        if asked.config is not None:
            fail(2, f"two configurations, --model {asked.model} and --config {asked.config}: give one of them")
        asked.config, asked.model = asked.model, None
    if asked.config is None:
        if asked.data is not None:
            fail(2, f"--data {asked.data} goes with --config: the YAML has the settings that it is built with")
        return None
    require_extras("cli")
    from lightning_taylor.cli.config import read_config

    return read_config(asked.config, options, model=asked.model, data=asked.data)
