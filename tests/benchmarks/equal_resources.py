"""Accuracy at equal latency, or at equal peak memory, by what channels are ranked by.

    python tests/benchmarks/equal_resources.py squeezenet --data flowers12/ --weights squeezenet1_1.pt --steps 240 ...
    python tests/benchmarks/equal_resources.py ... --measure

The same fits as in ``accuracy.py``, to a share of the dense net's latency or peak memory. Channels are ranked by their
scores over what they cost of that resource ("price"), over its square root ("root"), by their scores alone ("raw"), or
by their scores over the square root of their FLOPs. The pruned nets are kept. With ``--measure``, on a machine that
does nothing else, each is timed in turns with the dense net, or its peak is taken from torch's profiler. Beside it
stand what the fit said and, for latency, what the sum of the operators' times predicts.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import warnings
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import torch
from accuracy import fitted, parser
from lines import fill, spread
from nets import NETS
from subjects import in_turns, ratios, write
from targets import peak
from torch import Tensor, nn

from lightning_taylor import trace_channels
from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.measure.dry_pass import DryPass
from lightning_taylor.measure.meter import Meter
from lightning_taylor.measure.operator_times import OperatorTimes, timer_on
from lightning_taylor.utilities.calls import ForwardCall

METHODS = {"price": "Taylor", "root": "Taylor, power 0.5", "raw": "Taylor, power 0", "FLOPs": "Taylor"}


def priced(way: str) -> AbstractContextManager[Any]:
    """Let FLOPs stand in for the price, as they do where a resource cannot be measured layer by layer."""
    if way != "FLOPs":
        return nullcontext()
    return mock.patch.object(Meter, "savings", side_effect=UnsupportedModelError("it was asked for"))


def forward(net: nn.Module, x: Tensor) -> Any:
    with torch.inference_mode():
        return net(x)


def predicted(dense: nn.Module, pruned: nn.Module, x: Tensor) -> float:
    """The pruned net's time over the dense one's, both as sums of their operators' times."""
    graph, like = trace_channels(dense, x), timer_on(x.device)
    dry = DryPass(dense, [ForwardCall("", (x[:1],))], len(x))
    at = [
        graph.shrink({n: range(g.size - max(1, round(share * g.size))) for n, g in graph.groups.items()}).shapes
        for share in (0.25, 0.5, 0.75)
    ]
    passes = [dry(shapes)[0] for shapes in (*at, graph.dense)]
    left = {name: tuple(t.shape) for name, t in pruned.state_dict().items() if name in graph.dense}
    times = OperatorTimes(passes, like)
    return times.seconds(dry(left)[0]) / times.seconds(passes[-1])


def measured(dense: nn.Module, pruned: nn.Module, x: Tensor, resource: str, turns: int) -> dict[str, float]:
    """What the pruned net takes over what the dense one takes."""
    if resource == "memory":
        with tempfile.TemporaryDirectory() as folder:
            return {"measured": peak(pruned, x, folder)[0] / peak(dense, x, folder)[0]}
    runs = {"dense": lambda: forward(dense, x), "pruned": lambda: forward(pruned, x)}
    in_turns(runs, "cpu", 5)
    return {
        "measured": ratios(in_turns(runs, "cpu", turns), "pruned", "dense")[0],
        "predicted": predicted(dense, pruned, x),
    }


def table(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write one line for each way, multiple and target, with means and standard deviations over the seeds."""
    found: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        net, _, example = NETS[args.net](argparse.Namespace(**vars(args)), row["seed"])
        x = torch.randn(args.measured_batch or args.batch, *example.shape[1:])
        pruned = torch.load(row["file"], weights_only=False).cpu()
        new = measured(net.eval(), pruned.eval(), x, args.resource, args.turns)
        told = {"accuracy": row["accuracy"], "the fit says": row["remaining"][args.resource], **new}
        told |= {"FLOPs left": row["flops"], "parameters left": row["remaining"]["params"]}
        print(row["way"], row["widths"], row["seed"], told, flush=True)
        for name, value in told.items():
            found[row["target"], row["way"], row["widths"]][name].append(value)
    lines = []
    for (target, way, widths), columns in found.items():
        line = {"net": args.net, "asked": f"{args.resource} {target:g}", "ranked by": way, "widths": widths}
        for name, values in columns.items():
            digits = 1 if name == "accuracy" else 3
            line[name] = spread(values, digits)
        lines.append(line | {"seeds": len(columns["accuracy"])})
    title = f"Accuracy at equal {args.resource}, at a batch of {args.measured_batch or args.batch}"
    write(lines, title, args.folder, f"equal_{args.net}_{args.resource}", "cpu")


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--ways", nargs="+", default=list(METHODS), choices=METHODS)
    asked.add_argument("--measure", action="store_true", help="measure the nets that are there, and write the table")
    asked.add_argument("--turns", type=int, default=200)
    asked.set_defaults(resource="latency", targets=[0.5], seeds=[0, 1, 2, 3, 4], points=2)
    args = asked.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    kept = args.folder / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    file = args.folder / f"equal_{args.net}_{args.resource}_{args.steps}x{args.batch}_at{args.measured_batch}.jsonl"
    widths = "own" if args.round_to is None else f"multiples of {args.round_to}"

    def run(seed: int, way: str, widths: str, target: float) -> dict[str, Any]:
        net = kept / f"{args.net}_{args.resource}_{target}_{way}_{widths}_{seed}.pt"
        with priced(way):
            return {"file": str(net)} | fitted(args, seed, METHODS[way], target, net)

    wanted = itertools.product(args.seeds, args.targets, args.ways)
    jobs = [{"seed": seed, "way": way, "widths": widths, "target": target} for seed, target, way in wanted]
    rows = fill(file, [] if args.measure else jobs, run)
    if args.measure:
        table(args, [row for row in rows if row["way"] in args.ways])


if __name__ == "__main__":
    main()
