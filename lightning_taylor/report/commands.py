"""What one does next with a pruned checkpoint, ready to paste: load, export, benchmark."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning_taylor.report.summary import PruningSummary

__all__ = ["config_beside", "next_commands", "shown_commands"]

OURS = "lightning_taylor."


def config_beside(checkpoint: str) -> str:
    """Find the ``config.yaml`` that LightningCLI leaves in the folder of a fit, from a checkpoint below it.

    Example:
        >>> config_beside("no/such/version_0/checkpoints/last.ckpt")
        ''
    """
    config = Path(checkpoint).parent.parent / "config.yaml"
    return str(config) if checkpoint and config.is_file() else ""


def shown_commands(summary: PruningSummary) -> str:
    """Write the commands below a heading, for a terminal that does not wrap them; empty without a checkpoint."""
    commands = next_commands(summary)
    return "\n".join(["Go on with this checkpoint:", *(f"  {line}" for line in commands)]) if commands else ""


def next_commands(summary: PruningSummary) -> list[str]:
    """Return a line of Python and two of a shell for the summary's checkpoint; none if it has none.

    Example:
        >>> from lightning_taylor.report.summary import Change
        >>> one = Change(1, 1)
        >>> for line in next_commands(PruningSummary({}, one, one, one, (), checkpoint="last.ckpt", model="nets.Net")):
        ...     print(line)
        from nets import Net; from lightning_taylor import load_pruned; net = load_pruned(Net, 'last.ckpt')
        lightning-taylor export last.ckpt --format onnx --model nets.Net
        lightning-taylor benchmark last.ckpt --model nets.Net
    """
    if not summary.checkpoint:
        return []
    path, model = summary.checkpoint, summary.model or "my_project.Net"
    package, _, name = model.rpartition(".")
    of = "" if model.startswith(OURS) else f" --model {model}"
    if of and summary.config:  # it has the arguments of the class, which the checkpoint may not know
        of += f" --config {shlex.quote(summary.config)}"
    return [
        f"from {package} import {name}; from lightning_taylor import load_pruned; net = load_pruned({name}, {path!r})",
        f"lightning-taylor export {shlex.quote(path)} --format onnx{of}",
        f"lightning-taylor benchmark {shlex.quote(path)}{of}",
    ]
