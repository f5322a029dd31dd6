"""The commands: their names, what each does in a line, and how those that no Trainer runs are started."""

from __future__ import annotations

from importlib import import_module

__all__ = ["COMMANDS", "EVERY_COMMAND", "EXAMPLES_OF_FIT", "OVERVIEW", "TRAINER_COMMANDS", "run_command"]

TRAINER_COMMANDS: dict[str, str] = {
    "fit": "train a network and prune it on the way; without options, a small one on handwritten digits",
    "validate": "evaluate a checkpoint, pruned or not, on the validation set",
    "test": "evaluate a checkpoint, pruned or not, on the test set",
    "predict": "write a checkpoint's predictions to a file",
}
"""LightningCLI's commands -> what each does, in a line."""

COMMANDS: dict[str, str] = {
    "benchmark": "time the dense and the pruned network of a checkpoint at several batch sizes",
    "compare": "measure how well each criterion ranks the channels of a trained network, or prunes it (--curves)",
    "export": "write the network of a checkpoint as ONNX, torch.export program or state dict",
    "report": "show the report of a pruning from its checkpoint, and write it as a page",
    "inspect": "show what can be pruned of a network, why layers stay, and what a schedule would leave",
}
"""Command -> what it does, in a line; the module of that name beside this one has its ``run(args)``."""

EVERY_COMMAND = {**TRAINER_COMMANDS, **COMMANDS}

_LISTED = "\n".join(f"  {name:<10} {what}" for name, what in EVERY_COMMAND.items())

OVERVIEW = f"""\
usage: lightning-taylor COMMAND [options]

Prune a network while it trains.

commands:
{_LISTED}

examples:
  lightning-taylor inspect resnet18 --target 0.5
  lightning-taylor fit --config my.yaml --target 0.5
  lightning-taylor export last.ckpt --format onnx --model my_project.Net

`lightning-taylor COMMAND --help` lists the options of a command; `lightning-taylor --version` prints the version."""
"""What ``lightning-taylor --help`` prints."""


EXAMPLES_OF_FIT = """\
examples:
  lightning-taylor fit --trainer.max_epochs 5        the main job: a small network on handwritten digits
  lightning-taylor fit --config my.yaml --target 0.5 --schedule.every_n_steps 10
  lightning-taylor fit --model my_project.Net --data my_project.Data --target 0.5 --trainer.max_epochs 20

--target, --schedule and every other setting of TaylorPruning is short for --trainer.callbacks.target and so on;
`lightning-taylor fit --trainer.callbacks.help=lightning_taylor.TaylorPruning` explains them."""
"""What ``lightning-taylor fit --help`` begins with."""


def run_command(name: str, args: list[str]) -> None:
    """Run one of ``COMMANDS`` with the rest of its command line."""
    import_module(f"lightning_taylor.cli.{name}").run(args)
