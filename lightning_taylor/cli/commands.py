"""The commands that no Trainer runs, each in a module of its own with a ``run(args)``."""

from __future__ import annotations

from importlib import import_module

__all__ = ["COMMANDS", "DESCRIPTION", "run_command"]

COMMANDS: dict[str, str] = {
    "benchmark": "time the dense and the pruned network of a checkpoint at several batch sizes",
    "compare": "measure how well each criterion ranks the channels of a trained network, or prunes it (--curves)",
    "export": "write the network of a checkpoint as ONNX, torch.export program or state dict",
    "inspect": "show what can be pruned of a network, why layers stay, and what a schedule would leave",
}
"""Command -> what it does, in a line; the module of that name beside this one runs it."""

DESCRIPTION = (
    "Prune a network while it trains. `lightning-taylor fit` alone runs a small example. "
    f"Commands beside the ones below: {'; '.join(f'{name}: {what}' for name, what in COMMANDS.items())}."
)


def run_command(name: str, args: list[str]) -> None:
    """Run one of ``COMMANDS`` with the rest of its command line."""
    import_module(f"lightning_taylor.cli.{name}").run(args)
