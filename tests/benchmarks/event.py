"""What an event costs: rank, select, cut the weights and the optimizer's state, watch again; beside a training step and
a step of Torch-Pruning, in one run. And whether its cost stays the same over many events.

    python tests/benchmarks/event.py [--device cuda] [--nets resnet50:16:64 ...] [--share 0.01] [--events 20]
    uv run --with torch-pruning python tests/benchmarks/event.py     with the peer

Each event removes that share of the dense net's channels. The peer ranks by its own Taylor importance from the same
gradients, and removes about as many; its trace, like ours, comes before and is given apart.
"""

from __future__ import annotations

import argparse
import copy
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from subjects import Setting, Training, seconds, write
from torch import nn

from lightning_taylor import Iterative, Taylor
from lightning_taylor.options import Options
from lightning_taylor.pruner import Pruner


class Ours:
    """Events as a fit has them, without the Trainer."""

    def __init__(self, setting: Setting, net: nn.Module, share: float) -> None:
        graph: list[Any] = []
        self.trace = seconds(lambda: graph.append(setting.traced(net)), "cpu")
        self.training, self.device = Training(setting, net), setting.device
        channels = sum(group.size for group in graph[0].groups.values())
        self.schedule = Iterative(1, max(1, round(share * channels)))
        self.pruner = Pruner(net, graph[0], Options.of(0.01, Taylor(), None, 0.0, 1, 1))
        self.pruner.start()
        self.decided: list[float] = []
        self.removed: list[float] = []

    def step(self) -> None:
        self.training.scorer = self.pruner._scorer
        self.training.step()

    def event(self) -> None:
        found: list[Any] = []
        self.decided.append(seconds(lambda: found.append(self.pruner.decide(self.schedule, 1)), self.device))
        optimizers = [self.training.optimizer]
        self.removed.append(seconds(lambda: self.pruner.remove(found[0], 1, optimizers), self.device))


class Theirs:
    """Steps of Torch-Pruning, as its documentation shows them."""

    def __init__(self, setting: Setting, net: nn.Module, share: float) -> None:
        import torch_pruning as tp

        self.training, self.device = Training(setting, net), setting.device
        classes = [m for m in net.modules() if isinstance(m, nn.Linear)][-1:]

        def make() -> None:
            self.pruner = tp.pruner.BasePruner(
                net, self.training.x[:1], tp.importance.GroupTaylorImportance(), global_pruning=True,
                pruning_ratio=0.99, iterative_steps=round(0.99 / share), ignored_layers=classes,
            )  # fmt: skip

        self.trace = seconds(make, setting.device)
        self.steps: list[float] = []

    def event(self) -> None:
        self.steps.append(seconds(self.pruner.step, self.device))
        self.training.optimizer = torch.optim.SGD(self.training.net.parameters(), lr=1e-4, momentum=0.9)


def measured(setting: Setting, share: float, events: int) -> dict[str, Any]:
    net = setting.model()
    ours = Ours(setting, copy.deepcopy(net), share)
    theirs = Theirs(setting, copy.deepcopy(net), share) if find_spec("torch_pruning") else None
    plain = Training(setting, copy.deepcopy(net))
    plain.warm_up(2)
    step = median(seconds(plain.step, setting.device) for _ in range(5))
    for _ in range(events):
        ours.step()
        ours.event()
        if theirs:
            theirs.training.step()
            theirs.event()
    event = [a + b for a, b in zip(ours.decided, ours.removed, strict=True)]
    half = events // 2
    row = {
        "net": str(setting),
        "step": f"{step * 1e3:.0f} ms",
        "event": f"{median(event) * 1e3:.0f} ms",
        "of it deciding": f"{median(ours.decided) * 1e3:.0f} ms",
        "event / step": f"{median(event) / step:.2f}",
        "later / earlier events": f"{median(event[half:]) / median(event[:half]):.2f}",
        "trace / step": f"{ours.trace / step:.1f}",
    }
    if theirs:
        row["Torch-Pruning's step"] = f"{median(theirs.steps) * 1e3:.0f} ms"
        row["event / Torch-Pruning's"] = f"{median(event) / median(theirs.steps):.3f}"
        row["its trace / step"] = f"{theirs.trace / step:.1f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nets", nargs="+", default=["resnet50:16:64", "vgg16:4:128", "mobilenet_v2:16:64"])
    parser.add_argument("--share", type=float, default=0.01, help="of the channels that an event removes")
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--name", default="event")
    args = parser.parse_args()
    rows = []
    for text in args.nets:
        name, batch, side = text.split(":")
        rows.append(measured(Setting(name, int(batch), int(side), args.device), args.share, args.events))
        write(rows, f"An event that removes {args.share:.1%} of the channels", args.out, args.name, args.device)


if __name__ == "__main__":
    main()
