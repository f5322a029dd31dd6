"""``lightning-taylor benchmark``: what a pruned network gains on this machine, if it gains anything."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_taylor.cli.arguments import Parser, add_model_options, positive
from lightning_taylor.cli.checkpoint_model import random_inputs, read_trained
from lightning_taylor.cli.exit import fail
from lightning_taylor.cli.find_config import find_config
from lightning_taylor.measure.latency import Latency, LatencyComparison, compare_latency
from lightning_taylor.modules.resize import with_shapes
from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.trace.api import require_groups, trace_channels
from lightning_taylor.utilities.calls import Inputs

__all__ = ["run"]

DESCRIPTION = "Time a pruned network against the same one with the widths it had before, in turns, in evaluation mode."
EXAMPLES = """\
examples:
  lightning-taylor benchmark last.ckpt --batch-size 1 16 --model lightning_logs/version_0/config.yaml
  lightning-taylor benchmark last.ckpt --model my_project.Net --input-shape 1 3 224 224 --device cuda --json
  lightning-taylor benchmark resnet18 --fraction 0.5    a model of torchvision, channels removed at random"""
WARMUP = 3


@dataclass(frozen=True, eq=False)
class Networks:
    """What is timed, and what to say about it."""

    dense: nn.Module
    pruned: nn.Module
    inputs: Inputs
    notes: tuple[str, ...]


def run(args: list[str]) -> None:
    """Time, and show a table or JSON."""
    asked = _parser().parse_args(args)
    device = _device(asked.device)
    networks = _networks(asked)
    dense, pruned = (net.eval().to(device) for net in (networks.dense, networks.pruned))
    found: dict[int, LatencyComparison] = {}
    for batch in asked.batch_size:
        inputs = networks.inputs.with_batch(batch).to(device)
        found[batch] = compare_latency(
            lambda given=inputs: given.run(dense),
            lambda given=inputs: given.run(pruned),
            warmup=WARMUP,
            repeats=asked.repeats,
        )
    if asked.json:
        print(json.dumps(_plain(asked.checkpoint, networks, device, found), indent=1))
    else:
        _show(networks, device, found)


def _parser() -> Parser:
    parser = Parser("benchmark", DESCRIPTION, EXAMPLES)
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint that a Trainer wrote, or a torchvision name")
    parser.add_argument(
        "--batch-size",
        type=positive,
        nargs="+",
        default=[1, 16],
        metavar="N",
        help="examples per call; 1 16 by default",
    )
    parser.add_argument(
        "--repeats",
        type=_repeats,
        default=30,
        metavar="N",
        help="timed pairs per batch size, at least 5; 30 by default",
    )
    parser.add_argument("--device", default="cpu", help="cpu by default, or cuda, cuda:1, mps ...")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, in seconds")
    parser.add_argument(
        "--fraction",
        type=_fraction,
        metavar="F",
        help="for a torchvision name: the share of every group's channels to remove at random",
    )
    add_model_options(parser)
    return parser


def _repeats(text: str) -> int:
    if positive(text) < 5:
        raise argparse.ArgumentTypeError(f"expected at least 5 pairs, got {text}")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text!r}")
    return value


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        fail(2, f"--device {name}: {' '.join(str(error).split())[:160]}")
    return device


def _networks(asked: argparse.Namespace) -> Networks:
    if not Path(asked.checkpoint).exists():
        return _random(asked)
    if asked.fraction is not None:
        fail(2, f"--fraction is for a torchvision name, and {asked.checkpoint} is a file")
    trained = read_trained(asked.checkpoint, asked, find_config(asked))
    notes = [f"inputs: {trained.source}"]
    if not trained.pruned:
        notes.append("the checkpoint's network is not pruned: both columns are the same network")
    return Networks(
        with_shapes(trained.module, trained.dense, trained.followers), trained.module, trained.inputs, tuple(notes)
    )


def _random(asked: argparse.Namespace) -> Networks:
    from lightning_taylor.cli import torchvision_models  # a second, which a file does not need

    torchvision_models.check_name(asked.checkpoint)
    if asked.fraction is None:
        fail(2, f"{asked.checkpoint} of torchvision is not pruned: say what to remove at random, as in --fraction 0.5")
    inputs = random_inputs(asked.input_shape or [torchvision_models.usual_shape(asked.checkpoint)])
    pruned = torchvision_models.build(asked.checkpoint).eval()
    graph = require_groups(trace_channels(pruned, inputs.args))
    prune_channels(pruned, graph, graph.sample(asked.fraction, torch.Generator().manual_seed(0)))
    note = f"{asked.fraction:.0%} of every group's channels removed at random, random weights: for its time only"
    return Networks(with_shapes(pruned, graph.dense, graph.followers), pruned, inputs, (note, "inputs: random numbers"))


def _show(networks: Networks, device: torch.device, found: dict[int, LatencyComparison]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("batch", "dense ms", "pruned ms", "dense /s", "pruned /s"):
        table.add_column(name, justify="right", no_wrap=True)
    for batch, c in found.items():
        per_second = [f"{_per_second(batch, latency):.4g}" for latency in (c.dense, c.pruned)]
        table.add_row(str(batch), _milliseconds(c.dense), _milliseconds(c.pruned), *per_second)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.print(table)
    console.print()
    for batch, c in found.items():
        console.print(f"batch of {batch}: {c.verdict}")
    console.print(
        f"medians (and middle halves); /s: examples per second; on {_machine(device)}", *networks.notes, sep="\n"
    )


def _milliseconds(latency: Latency) -> str:
    low, median, high = (f"{seconds * 1e3:.3g}" for seconds in (latency.low, latency.median, latency.high))
    return f"{median} ({low}-{high})"


def _per_second(batch: int, latency: Latency) -> float:
    return batch / latency.median


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}, {threads} thread{'s' * (threads > 1)}), torch {torch.__version__}"


def _plain(name: str, networks: Networks, device: torch.device, found: dict[int, LatencyComparison]) -> dict[str, Any]:
    return {
        "network": name,
        "machine": _machine(device),
        "inputs": [list(shape) for shape in networks.inputs.shapes],
        "notes": list(networks.notes),
        "results": [
            {
                "batch_size": batch,
                **comparison.to_plain(),
                "dense_per_second": _per_second(batch, comparison.dense),
                "pruned_per_second": _per_second(batch, comparison.pruned),
            }
            for batch, comparison in found.items()
        ],
    }
