"""How the cost of a trace, of scoring and of an event grows with depth and width: residual nets of 10 to 1,000 layers.

python tests/benchmarks/scale.py [--depths 10 30 100 300 1000] [--widths 8 32 128]

"Grows as" is the exponent between one row and the one before it: 1 is linear. Few channels and small images, so that
what is timed is the work per layer.
"""

from __future__ import annotations

import argparse
import sys
from math import log
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from subjects import seconds, write
from torch import Tensor, nn

from lightning_taylor import Iterative, Taylor, trace_channels
from lightning_taylor.fit.options import Options
from lightning_taylor.fit.pruner import Pruner


class Block(nn.Module):
    """Two layers around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm, self.two = (
            nn.Conv2d(width, width, 3, 1, 1),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.norm(self.one(x))))


def net(depth: int, width: int) -> nn.Module:
    blocks = [Block(width) for _ in range(max(1, (depth - 2) // 2))]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


def measured(depth: int, width: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = net(depth, width).train()
    x, optimizer = torch.randn(4, 3, 8, 8), torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    graph: list[Any] = []
    found = {"trace": seconds(lambda: graph.append(trace_channels(model, x)), "cpu")}
    pruner = Pruner(model, graph[0], Options.of(0.5, Taylor(), None, 0.0, 1, 1))

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        pruner.scorer.end_batch(examples=len(x))
        optimizer.step()

    step()
    found["step"] = median(seconds(step, "cpu") for _ in range(3))
    pruner.start()
    step()
    found["step with scores"] = median(seconds(step, "cpu") for _ in range(3))
    events, schedule = [], Iterative(1, max(1, depth // 10))
    for _ in range(3):
        step()
        events.append(seconds(lambda: pruner.remove(pruner.decide(schedule, 1), 1, [optimizer]), "cpu"))  # type: ignore[arg-type]
    return {**found, "event": median(events)}


def table(sizes: list[tuple[int, int]], of: int) -> list[dict[str, Any]]:
    """``of``: which of depth and width grows."""
    rows: list[dict[str, Any]] = []
    before: tuple[int, dict[str, float]] | None = None
    for size in sizes:
        found = measured(*size)
        row: dict[str, Any] = {"layers": size[0], "channels": size[1]}
        for name, value in found.items():
            row[name] = f"{value * 1e3:.0f} ms"
            grows = log(value / before[1][name]) / log(size[of] / before[0]) if before else None
            row[f"{name} grows as"] = f"{grows:.2f}" if grows is not None else ""
        before = size[of], found
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = parser.parse_args()
    sys.setrecursionlimit(100_000)
    write(table([(depth, 8) for depth in args.depths], 0), "Cost over depth", args.out, "depth", "cpu")
    write(table([(10, width) for width in args.widths], 1), "Cost over width", args.out, "width", "cpu")


if __name__ == "__main__":
    main()
