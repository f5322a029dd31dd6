"""The console script ``lightning-taylor``: what LightningCLI does, and what only a pruned network needs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_taylor.cli.main import main
from lightning_taylor.cli.shipped_configs import shipped_configs

if TYPE_CHECKING:
    from lightning_taylor.cli.lightning_cli import TaylorCLI

__all__ = ["TaylorCLI", "main", "shipped_configs"]


def __getattr__(name: str) -> Any:
    # LightningCLI needs jsonargparse, which a bare install has not; the other commands do without.
    if name == "TaylorCLI":
        return import_module("lightning_taylor.cli.lightning_cli").TaylorCLI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
