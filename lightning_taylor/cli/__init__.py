"""The console script ``lightning-taylor``: what LightningCLI does, and what only a pruned network needs."""

from lightning_taylor.cli.app import TaylorCLI, main
from lightning_taylor.cli.configs import shipped_configs

__all__ = ["TaylorCLI", "main", "shipped_configs"]
