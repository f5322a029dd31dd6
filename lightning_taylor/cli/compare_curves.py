"""``lightning-taylor compare --curves``: one trained checkpoint, pruned with each criterion over equal steps."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lightning_taylor.checkpoint.widths import was_pruned
from lightning_taylor.cli.arguments import positive
from lightning_taylor.cli.checkpoint_file import read_checkpoint
from lightning_taylor.cli.criteria import WITH_FLOPS, check_criteria, known_criteria, own_criterion
from lightning_taylor.cli.exit import fail
from lightning_taylor.report.figures.style import png
from lightning_taylor.study.curve_table import CurveTable
from lightning_taylor.study.curves import DENSE, CurveFile
from lightning_taylor.utilities.atomic import write_file

if TYPE_CHECKING:
    from lightning_taylor.cli.config import FitConfig

__all__ = [
    "add_curve_options",
    "run_curves",
]

DEFAULT = ("Taylor", WITH_FLOPS, "WeightMagnitude", "Random")

ELSEWHERE = ("trainer.logger", "trainer.default_root_dir", "seed_everything", "ckpt_path")
"""Settings of a configuration that change nothing about a curve."""


def add_curve_options(parser: argparse.ArgumentParser) -> list[str]:
    """Add the options that only ``--curves`` reads.

    Returns:
        Their names.
    """
    group = parser.add_argument_group("with --curves")
    actions = [
        group.add_argument(
            "--target", type=_below_one, default=0.2, metavar="F",
            help="smallest share of the FLOPs, reached by all; 0.2 by default",
        ),
        group.add_argument(
            "--metric", metavar="NAME",
            help="of those that the validation logs; by default the first with `acc` in its name",
        ),
        group.add_argument(
            "--points", type=positive, default=10, metavar="N",
            help="measurements while channels go, beside the first and the last; 10 by default",
        ),
        group.add_argument(
            "--seeds", type=int, nargs="+", metavar="N",
            help="one for each checkpoint, or several for one; 0 1 2 by default for one, else 0 for the first, ...",
        ),
        group.add_argument(
            "--steps", type=positive, metavar="N",
            help="optimizer steps of each fit, with a schedule over them; by default the config's own",
        ),
        group.add_argument(
            "--every", type=positive, metavar="N",
            help="optimizer steps between two removals, after a tenth and until two thirds of the fit; by default the "
            "schedule of the config's TaylorPruning, or about 25 removals",
        ),
        group.add_argument(
            "--cost-penalty", type=_not_negative, metavar="X",
            help=f"of {WITH_FLOPS}, in units of the score per MFLOP; by default the config's if it has one, or 1e-3",
        ),
    ]  # fmt: skip
    return [action.dest for action in actions]


def run_curves(asked: argparse.Namespace, config: FitConfig, checkpoints: Callable[[], list[str]]) -> None:
    """Do the runs that are not done yet, and show all of them.

    Args:
        asked: the command line of ``compare``.
        config: of the fits.
        checkpoints: gives the networks to begin with, when all else is known to be right.

    Raises:
        SystemExit: with 2 for a mistake on the command line, in the configuration or a checkpoint.
    """
    from lightning_taylor.cli.curve_fit import fit_curve  # needs the extra cli

    _check_length(asked, config)
    pruning = config.pruning()
    own = [own_criterion(pruning)] if pruning else []
    criteria = list(dict.fromkeys(asked.criteria or (*DEFAULT, *own)))
    check_criteria(criteria, [*known_criteria(pruning), WITH_FLOPS])
    paths = _paths(checkpoints(), asked.seeds)
    contents = {path: _contents(path, asked.trust) for path in set(paths.values())}
    found = {seed: contents[path] for seed, path in paths.items()}
    file = CurveFile(asked.out / "curves.jsonl")
    settings = _settings(asked, config)
    settings["metric"] = asked.metric or file.setting("metric")
    file.check(settings, found)
    jobs = [(name, seed) for seed in paths for name in (*criteria, DENSE)]
    done = {(curve.criterion, curve.seed) for curve in file.curves}
    for place, (name, seed) in enumerate(jobs):
        if (name, seed) not in done:
            curve, settings["metric"] = fit_curve(asked, config, name, seed, paths[seed], settings["metric"])
            file.add(curve, {**settings, "checkpoint": found[seed]})
            said = f"{settings['metric']} {curve.last.metric:.3f} at {100 * curve.last.flops:.1f} % of the FLOPs"
            print(f"{place + 1} of {len(jobs)}: {name}, seed {seed}: {said}", file=sys.stderr)
    measured = {(curve.criterion, curve.seed): curve for curve in file.curves}
    shown = [measured[name, seed] for name in (*criteria, DENSE) for seed in paths]
    _show(CurveTable(shown, settings["metric"]), asked)


def _show(table: CurveTable, asked: argparse.Namespace) -> None:
    if asked.json:
        print(json.dumps(table.to_plain(), indent=1))
    else:
        table.show(Console(file=sys.stdout, highlight=False))
    try:
        write_file(asked.out / "curves.png", png(table.figure()))
    except ModuleNotFoundError as error:
        print(f"no figure: {error}", file=sys.stderr)


def _check_length(asked: argparse.Namespace, config: FitConfig) -> None:
    trainer = config.content.get("trainer") or {}
    if not asked.steps and trainer.get("max_epochs") is None and trainer.get("max_steps") in (None, -1):
        fail(2, f"{config.name} does not say how long the fit is, by max_epochs or max_steps: give --steps")


def _paths(paths: list[str], asked: list[int] | None) -> dict[int, str]:
    """Seed -> checkpoint."""
    seeds = asked or (list(range(len(paths))) if len(paths) > 1 else [0, 1, 2])
    if len(set(seeds)) < len(seeds):
        fail(2, f"--seeds: {' '.join(map(str, seeds))} are not different")
    if len(paths) > 1 and len(paths) != len(seeds):
        fail(2, f"--seeds: {len(seeds)} for {len(paths)} checkpoints; give one for each, or one checkpoint")
    return dict(zip(seeds, paths * (len(seeds) if len(paths) == 1 else 1), strict=True))


def _contents(path: str, trust: bool) -> str:
    """What tells a checkpoint's contents, after a look that it is one of a dense network."""
    checkpoint = read_checkpoint(path, trust=trust)
    if was_pruned(checkpoint):
        fail(2, f"{path} is pruned already, and the curves begin with the dense network: give one from before")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _settings(asked: argparse.Namespace, config: FitConfig) -> dict[str, Any]:
    """Everything that two runs must have in common to be compared, name -> plain value."""
    own = {name: getattr(asked, name) for name in ("target", "steps", "every", "points", "cost_penalty")}
    plain = json.loads(json.dumps(config.written, default=str))
    own |= {name: value for name, value in _flat("", plain) if name not in ELSEWHERE}
    return own | ({"options": " ".join(config.options)} if config.options else {})


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not value or not isinstance(value, dict | list):
        yield name, value
        return
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
        inner = f"{name}.{key}" if name else str(key)
        yield from [(inner, inside)] if inner in ELSEWHERE else _flat(inner, inside)


def _below_one(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share of the dense network's FLOPs below 1, got {text!r}")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
