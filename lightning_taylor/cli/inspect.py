"""``lightning-taylor inspect``: what can be pruned of a network, and what a schedule would leave of it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

from lightning_taylor.cli.arguments import Parser, add_trust, positive
from lightning_taylor.cli.checkpoint_file import pruning_in, read_checkpoint
from lightning_taylor.cli.exit import fail, nearest
from lightning_taylor.cli.extras import require_extras
from lightning_taylor.cli.shipped_configs import resolve_configs
from lightning_taylor.errors import NothingToPruneError
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.limits import MaxRemoved
from lightning_taylor.plan.schedule import default_schedule
from lightning_taylor.plan.target import Target
from lightning_taylor.report.inspection import Inspection, inspect_model
from lightning_taylor.report.inspection_table import inspection_tables
from lightning_taylor.trace.options import AttentionHeads, ConvGroups, TraceOptions

__all__ = [
    "Request",
    "of_checkpoint",
    "of_config",
    "of_name",
    "run",
]

DESCRIPTION = (
    "Show what TaylorPruning would do to a network, and why layers have to stay. Nothing is trained or removed."
)

EXAMPLES = """\
examples:
  lightning-taylor inspect resnet18 --target 0.5 --steps 1000    a model of torchvision
  lightning-taylor inspect --config digits                       the model, data and callback of a configuration
  lightning-taylor inspect --config my.yaml --trainer.max_epochs 3 --json
  lightning-taylor inspect lightning_logs/version_0/checkpoints/last.ckpt
Options of `lightning-taylor fit` are taken, too, with a configuration."""

OF_FIT = ("--config", "-c", "--trainer", "--model", "--data", "--seed_everything", "--optimizer", "--lr_scheduler",
          "--schedule")  # fmt: skip
"""How options begin that ``lightning-taylor fit`` knows; their presence tells that there is a configuration."""


def run(args: list[str]) -> None:
    """Inspect what the command line names, and print a table or JSON."""
    options, rest = _split(args)
    request = Request(
        target=options.target,
        steps=options.steps,
        ignore=None if options.ignore is None else tuple(options.ignore),
        min_channels=options.min_channels,
        round_to=options.round_to,
        allow_inexact_norms=options.allow_inexact_norms or None,
        conv_groups=options.conv_groups,
        attention_heads=options.attention_heads,
        scope=None if options.scope is None else tuple(options.scope),
        max_removed=_joined(options.max_removed),
    )
    show(_inspect(options, request, rest), as_json=options.json)


def _split(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and those of a fit."""
    if not any(_root(arg) in OF_FIT for arg in args):
        return _parser(with_source=True).parse_args(args), []
    parser = _parser(with_source=False)
    options, rest = parser.parse_known_args(args)
    known = [*OF_FIT, *(name for action in parser._actions for name in action.option_strings)]
    for wrong in (arg for arg in rest if arg.startswith("--") and _root(arg) not in known):
        parser.error(f"no option {wrong.split('=')[0]!r}{nearest(_root(wrong), known)}")
    options.source = None
    return options, rest


def _root(arg: str) -> str:
    return re.split(r"[.=+]", arg, maxsplit=1)[0]


def _inspect(options: argparse.Namespace, request: Request, rest: list[str]) -> Inspection:
    source, shape = options.source, options.input_shape
    if source is None:
        if shape:
            fail(2, "--input-shape goes with the name of a model; a configuration has its own inputs")
        return of_config(resolve_configs(["fit", *rest]), request)
    if Path(source).is_file():
        if shape or request != Request():
            fail(2, "a checkpoint is shown as it is: leave out every option but --json and --trust")
        return of_checkpoint(source, trust=options.trust)
    return of_name(source, request, shape)


def show(inspection: Inspection, *, as_json: bool) -> None:
    """Print an inspection.

    Raises:
        SystemExit: with 1 if the target cannot be met.
        NothingToPruneError: if nothing can be removed.
    """
    if as_json:
        print(json.dumps(inspection.to_plain(), indent=2))
    else:
        Console(file=sys.stdout, highlight=False).print(inspection_tables(inspection))
    if not any(layer.groups for layer in inspection.layers):
        raise NothingToPruneError("no channel of this model can be removed; the reasons are in the table")
    if not inspection.met:
        fail(1, inspection.problem or "the target is not met by the last event of the fit")


def _parser(*, with_source: bool) -> Parser:
    parser = Parser("inspect", DESCRIPTION, EXAMPLES)
    if with_source:
        parser.add_argument("source", nargs="?", metavar="NAME|CKPT", help="a model of torchvision, or a checkpoint")
    parser.add_argument(
        "--input-shape",
        metavar="N",
        type=positive,
        nargs="+",
        help="shape of the input, the number of examples first: 1 3 224 224. By default what the model's published "
        "weights are evaluated at",
    )
    parser.add_argument(
        "--target",
        metavar="F|RESOURCE=F,...",
        type=_target,
        help="what may remain, as a fraction of the dense model: 0.5 (of the FLOPs), or flops=0.5,params=0.4. By "
        "default that of the configuration, or 0.5",
    )
    parser.add_argument(
        "--steps",
        metavar="N",
        type=positive,
        help="optimizer steps of the fit, over which the default schedule is laid. By default those of the "
        "configuration; without any there is one event",
    )
    parser.add_argument("--ignore", metavar="PATTERN", nargs="+", help="name patterns of layers that stay whole")
    parser.add_argument("--min-channels", metavar="N", type=positive, help="fewest channels that a group may keep")
    parser.add_argument("--round-to", metavar="N", type=positive, help="groups keep a multiple of this many channels")
    parser.add_argument(
        "--allow-inexact-norms", action="store_true", help="also channels that a LayerNorm averages over"
    )
    parser.add_argument(
        "--conv-groups",
        choices=get_args(ConvGroups),
        help="what goes from a grouped convolution: whole groups, or the same channels of every group",
    )
    parser.add_argument(
        "--attention-heads",
        choices=get_args(AttentionHeads),
        help="what goes from an attention: whole heads, or the same coordinates of every head",
    )
    parser.add_argument(
        "--scope", metavar="PATTERN", nargs="+", help="name patterns of the only modules that lose channels and count"
    )
    parser.add_argument(
        "--max-removed",
        metavar="F|PATTERN=F",
        type=_share,
        nargs="+",
        help="the largest share of a group's channels that may go: 0.9 for all, or layer4=0.5 by layers' names",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, every event included")
    add_trust(parser)
    return parser


def _target(text: str) -> Target:
    """One fraction, or several with their names."""
    try:
        if "=" not in text:
            return Target.of(float(text))
        pairs = (part.split("=", 1) for part in text.split(","))
        return Target(**{name.strip(): float(value) for name, value in pairs})
    except TypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} names no resource: flops, params, channels, latency, memory"
        ) from error
    except ValueError as error:
        said = str(error)
        raise argparse.ArgumentTypeError(
            said if said.startswith(("target", "a target")) else f"{text!r} is neither 0.5 nor flops=0.5,params=0.4"
        ) from error


def _share(text: str) -> float | dict[str, float]:
    """One share for all layers, or that of the layers of one pattern."""
    pattern, _, number = text.rpartition("=")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share in [0, 1] such as 0.9 nor layer4=0.5")
    return {pattern: share} if pattern else share


def _joined(shares: Sequence[float | dict[str, float]] | None) -> MaxRemoved | None:
    """Put what was given one by one together; a share without a pattern is that of all layers."""
    if not shares:
        return None
    named = [share if isinstance(share, dict) else {"*": share} for share in shares]
    return {pattern: share for each in named for pattern, share in each.items()}


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None is left to the configuration, or to the defaults of ``TaylorPruning``."""

    target: Target | None = None
    steps: int | None = None
    ignore: tuple[str, ...] | None = None
    min_channels: int | None = None
    round_to: int | None = None
    allow_inexact_norms: bool | None = None
    conv_groups: ConvGroups | None = None
    attention_heads: AttentionHeads | None = None
    scope: tuple[str, ...] | None = None
    max_removed: MaxRemoved | None = None


def of_name(name: str, request: Request, shape: Sequence[int] | None) -> Inspection:
    """A model of torchvision, or the one for the digits, with random weights."""
    from lightning_taylor.cli import torchvision_models  # a second, which a checkpoint does not need

    torchvision_models.check_name(name)
    inputs = torch.rand(*(shape or torchvision_models.usual_shape(name)), generator=torch.Generator().manual_seed(0))
    given = {key: value for key, value in vars(request).items() if value is not None}
    return inspect_model(torchvision_models.build(name), inputs, **given)


def of_checkpoint(path: str, *, trust: bool) -> Inspection:
    """What a checkpoint remembers of its pruning; its model's class is not needed."""
    _, graph, record = pruning_in(read_checkpoint(path, trust=trust), path)
    try:
        return Inspection.after(graph, record)
    except (KeyError, ValueError) as error:
        fail(2, f"what {path} says about its pruning is no pruning ({type(error).__name__}: {error})")


def of_config(args: list[str], request: Request) -> Inspection:
    """The model, data and callback of a configuration, up to the first training batch of its fit.

    Args:
        args: a command line of ``lightning-taylor fit``.
        request: what overrides the settings of the callback.

    Raises:
        ValueError: if the fit is too short for its schedule, or of unknown length and has none.
    """
    require_extras("cli")
    from lightning_taylor.cli.classes import with_classes_first
    from lightning_taylor.cli.dry_fit import look
    from lightning_taylor.cli.short_forms import expand_short_forms

    chosen = {f.name: value for f in fields(TraceOptions) if (value := getattr(request, f.name)) is not None}
    looked = look(expand_short_forms(with_classes_first(args)), request.ignore, chosen)
    pruner, options = looked.pruner, looked.pruner.options
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length = FitLength(request.steps, looked.length.epoch) if request.steps else looked.length
    schedule = pruner.schedule.in_steps(length) if pruner.schedule else default_schedule(length.steps)
    return Inspection.of(
        looked.graph,
        request.target or options.target,
        schedule,
        int(length.steps) if length.steps != float("inf") else None,
        min_channels=request.min_channels or options.min_channels,
        max_removed=request.max_removed or options.max_removed,
        round_to=request.round_to or options.on(device).multiple,
    )
