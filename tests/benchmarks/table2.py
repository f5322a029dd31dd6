"""The paper's Table 2 on this machine: AlexNet and VGG-16 with its shares of the maps and its FLOPs, dense over pruned.

    python tests/benchmarks/table2.py [--device cuda] [--nets alexnet vgg16] [--batches 16 512] [--turns 5]

The paper gives what is left of the maps, and of the FLOPs, not layer by layer. The widths here have both: every layer
keeps ``s ** (f / mean f) ** a`` of its maps, f the FLOPs of a map; s is found for the maps, a (above 0 where costly
layers lost more than others) for the FLOPs. Linear layers lose inputs only. Weights are random.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torchvision
from speedup import compared, ways
from subjects import Clock, Setting, clock_of, parser, write
from torch import nn

from lightning_taylor import prune_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.cost import CostModel

CLASSES = {"alexnet": 102, "vgg16": 1000}
CASES = {"alexnet": [(0.41, 0.4), (0.195, 0.2)], "vgg16": [(0.66, 11.5), (0.52, 8.0)]}
"""Net -> share of the maps and GFLOPs that are left."""

PAPER = {
    "Core i7-5930K": {("alexnet", 16): ("1.9", "2.6"), ("vgg16", 16): ("1.7", "2.1")},
    "TITAN X (Pascal)": {
        ("alexnet", 16): ("2.0", "2.5"), ("alexnet", 512): ("2.4", "3.2"), ("vgg16", 16): ("2.2", "3.4"),
    },
}  # fmt: skip
"""Its device -> net and batch -> how many times faster in each case."""


def root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses 0, or the end that is nearer to it."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def lost(graph: ChannelGraph, maps: float, gflops: float) -> dict[str, int]:
    """How many maps of each convolution go."""
    cost = CostModel(graph)
    size = {name: group.size for name, group in graph.groups.items() if name.startswith("features")}
    of_map = {name: cost.dense.flops - cost.at({name: 1}).flops for name in size}
    lean = {name: of_map[name] / fmean(of_map.values()) for name in size}

    def keeping(share: float, power: float) -> dict[str, int]:
        return {n: c - max(1, round(c * share ** lean[n] ** power)) for n, c in size.items()}

    def shared(power: float) -> dict[str, int]:
        total = sum(size.values())
        share = root(lambda s: 1 - sum(keeping(s, power).values()) / total - maps, 0.0, 1.0)
        return keeping(share, power)

    return shared(root(lambda power: gflops * 1e9 - cost.at(shared(power)).flops, -2.0, 2.0))


def shrunk(dense: nn.Module, setting: Setting, maps: float, gflops: float) -> tuple[nn.Module, float, dict[str, str]]:
    """The pruned net, how many times fewer FLOPs it has, and what is left."""
    pruned = copy.deepcopy(dense)
    graph = setting.traced(pruned, setting.side)
    gone = lost(graph, maps, gflops)
    size = sum(graph.groups[name].size for name in gone)
    cost = CostModel(graph)
    left = cost.at(gone).flops
    about = {"maps left": f"{1 - sum(gone.values()) / size:.1%} ({maps:.1%})", "GFLOPs": f"{left / 1e9:.2f} ({gflops})"}
    prune_channels(pruned, graph, {n: torch.randperm(graph.groups[n].size)[:k].sort()[0] for n, k in gone.items() if k})
    return pruned, cost.dense.flops / left, about


def measured(setting: Setting, batches: list[int], turns: int, clock: Clock) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    net, device = setting.net, setting.device
    dense = torchvision.models.get_model(net, num_classes=CLASSES[net]).eval()
    cases = [shrunk(dense, setting, *case) for case in CASES[net]]
    rows = []
    for batch in batches:
        x = setting.images(batch, setting.side).to(device)
        before = ways(dense.to(device), x, compiled=False)
        for case, (pruned, ratio, about) in enumerate(cases):
            said = {of: f"{times[net, batch][case]} times" for of, times in PAPER.items() if (net, batch) in times}
            after = ways(pruned.to(device), x, compiled=False)
            found = compared(before, after, ratio, device, turns, clock)
            rows += [{"net": net, "batch": batch} | about | row | said for row in found]
    return rows


def main() -> None:
    asked = parser(__doc__, "table2", default=list(CASES), choices=CASES)
    asked.add_argument("--batches", type=int, nargs="+", default=[16])
    asked.add_argument("--turns", type=int, default=5)
    asked.add_argument("--busy", action="store_true", help="processor time in one thread")
    args = asked.parse_args()
    title = "Table 2 of the paper on this machine; in brackets, and in the last columns, what the paper says"
    rows: list[dict[str, Any]] = []
    for net in args.nets:
        rows += measured(Setting(net, 1, 224, args.device), args.batches, args.turns, clock_of(args.busy))
        write(rows, title, args.out, args.name, args.device)


if __name__ == "__main__":
    main()
