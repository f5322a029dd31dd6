"""What an event costs: rank, select, cut the weights and the optimizer's state, watch again; beside a training step and
a step of Torch-Pruning, in one run. And whether its cost stays the same over many events.

    python tests/benchmarks/event.py [--device cuda] [--nets resnet50:16:64 ...] [--share 0.01] [--events 20]
    python tests/benchmarks/event.py --nets resnet50:2:32 --share 0 --events 1000 --busy     one channel each
    uv run --with torch-pruning python tests/benchmarks/event.py     with the peer

Each event removes that share of the dense net's channels, at least one. The peer ranks by its own Taylor importance
from the same gradients, and removes about as many; its trace, like ours, comes before and is given apart.
"""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from subjects import Clock, Setting, Training, clock_of, parser, seconds, write
from torch import nn

from lightning_taylor import Iterative, Taylor
from lightning_taylor.fit.options import Options
from lightning_taylor.fit.pruner import Pruner

_MANY = 100  # events whose mean is compared with that of as many at the end


class Ours:
    """Events as a fit has them, without the Trainer."""

    def __init__(self, setting: Setting, net: nn.Module, share: float, clock: Clock) -> None:
        self.clock = clock
        graph: list[Any] = []
        self.trace = seconds(lambda: graph.append(setting.traced(net)), "cpu", clock=clock)
        self.training, self.device = Training(setting, net), setting.device
        channels = sum(group.size for group in graph[0].groups.values())
        self.schedule = Iterative(1, max(1, round(share * channels)))
        self.pruner = Pruner(net, graph[0], Options.of(0.01, Taylor(), None, 0.0, 1, 1))
        self.pruner.start()
        self.decided: list[float] = []
        self.removed: list[float] = []

    def step(self) -> None:
        self.training.scorer = self.pruner.scorer
        self.training.step()

    def event(self) -> None:
        found: list[Any] = []
        optimizers = [self.training.optimizer]
        self.decided.append(self.timed(lambda: found.append(self.pruner.decide(self.schedule, 1))))
        self.removed.append(self.timed(lambda: self.pruner.remove(found[0], 1, optimizers)))

    def timed(self, run: Any) -> float:
        return seconds(run, self.device, clock=self.clock)


class Theirs:
    """Steps of Torch-Pruning, as its documentation shows them."""

    def __init__(self, setting: Setting, net: nn.Module, share: float, clock: Clock) -> None:
        import torch_pruning as tp

        self.clock = clock
        self.training, self.device = Training(setting, net), setting.device
        classes = [m for m in net.modules() if isinstance(m, nn.Linear)][-1:]

        def make() -> None:
            self.pruner = tp.pruner.BasePruner(
                net, self.training.x[:1], tp.importance.GroupTaylorImportance(), global_pruning=True,
                pruning_ratio=0.99, iterative_steps=round(0.99 / share), ignored_layers=classes,
            )  # fmt: skip

        self.trace = seconds(make, setting.device, clock=clock)
        self.steps: list[float] = []

    def event(self) -> None:
        self.steps.append(seconds(self.pruner.step, self.device, clock=self.clock))
        self.training.optimizer = torch.optim.SGD(self.training.net.parameters(), lr=1e-4, momentum=0.9)


def measured(setting: Setting, share: float, events: int, clock: Clock) -> dict[str, Any]:
    net = setting.model()
    ours = Ours(setting, copy.deepcopy(net), share, clock)
    theirs = Theirs(setting, copy.deepcopy(net), share, clock) if share and find_spec("torch_pruning") else None
    plain = Training(setting, copy.deepcopy(net))
    plain.warm_up(2)
    step = median(seconds(plain.step, setting.device, clock=clock) for _ in range(5))
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
    if events >= 2 * _MANY:
        first, last = mean(event[:_MANY]), mean(event[-_MANY:])
        row |= {"first hundred": f"{first * 1e3:.1f} ms", "last hundred": f"{last * 1e3:.1f} ms"}
        row |= {"last / first": f"{last / first:.2f}"}
        left = ours.pruner.fractions()
        row |= {f"{name} left": f"{left[name]:.1%}" for name in ("channels", "params")}
    if theirs:
        row["Torch-Pruning's step"] = f"{median(theirs.steps) * 1e3:.0f} ms"
        row["event / Torch-Pruning's"] = f"{median(event) / median(theirs.steps):.3f}"
        row["its trace / step"] = f"{theirs.trace / step:.1f}"
    return row


def main() -> None:
    asked = parser(__doc__, "event", default=["resnet50:16:64", "vgg16:4:128", "mobilenet_v2:16:64"])
    asked.add_argument("--share", type=float, default=0.01, help="of the channels that an event removes")
    asked.add_argument("--events", type=int, default=20)
    asked.add_argument("--busy", action="store_true", help="processor time in one thread")
    args = asked.parse_args()
    clock = clock_of(args.busy)
    rows = []
    for text in args.nets:
        rows.append(measured(Setting.of(text, args.device), args.share, args.events, clock))
        title = f"An event that removes {f'{args.share:.1%} of the channels' if args.share else 'one channel'}"
        write(rows, title, args.out, args.name, args.device)


if __name__ == "__main__":
    main()
