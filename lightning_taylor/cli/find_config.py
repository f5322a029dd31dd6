"""Whether ``--model`` names a configuration, and reading it then; only that needs jsonargparse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_taylor.cli.extras import require_extras
from lightning_taylor.cli.shipped_configs import shipped_configs

if TYPE_CHECKING:
    from lightning_taylor.cli.config import FitConfig

__all__ = ["find_config"]


def find_config(named: str | None, options: Sequence[str] = ()) -> FitConfig | None:
    """Find the configuration that ``--model`` or ``--config`` names; None if it names a class, or nothing.

    Args:
        named: a file, the name of a configuration that ships, or something else.
        options: of ``lightning-taylor fit``, which override it.

    Raises:
        SystemExit: with 1 if jsonargparse is missing, with 2 for a mistake in the file; both after a line on stderr.
    """
    if named is None or not (named in shipped_configs() or named.endswith((".yaml", ".yml")) or Path(named).is_file()):
        return None
    require_extras("cli")
    from lightning_taylor.cli.config import read_config

    return read_config(named, options)
