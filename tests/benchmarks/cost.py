"""What scoring and an event cost, as ratios to a training step, measured in turns in one run.

python tests/benchmarks/cost.py [NET ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torchvision
from torch import nn

from lightning_taylor import Taylor, TaylorBatch, prune_channels, trace_channels
from lightning_taylor.scores import Scorer

BATCH, SIDE, TURNS = 16, 96, 12


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, scorer: Scorer | None) -> None:
    optimizer.zero_grad()
    net(x).square().mean().backward()
    if scorer is not None:
        scorer.end_batch(examples=len(x))
        scorer.before_step()
    optimizer.step()


def seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def cost(name: str) -> str:
    net = torchvision.models.get_model(name, weights=None).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    x = torch.randn(BATCH, 3, SIDE, SIDE)
    traced = time.perf_counter()
    graph = trace_channels(net, x)
    traced = time.perf_counter() - traced
    step(net, optimizer, x, None)
    ratios: dict[str, list[float]] = {"Taylor": [], "TaylorBatch": []}
    plain: list[float] = []
    for _ in range(TURNS):
        for criterion in (Taylor(), TaylorBatch()):
            bare = seconds(lambda: step(net, optimizer, x, None))
            scorer = criterion.watch(net, graph)
            ratios[type(criterion).__name__].append(seconds(lambda s=scorer: step(net, optimizer, x, s)) / bare)
            plain.append(bare)
            scorer.close()
    remove = graph.sample(0.02, torch.Generator().manual_seed(0))
    event = seconds(lambda: prune_channels(net, graph, remove, optimizers=[optimizer]) and None)
    one = median(plain)
    figures = ", ".join(f"{n} {median(r):.3f}" for n, r in ratios.items())
    others = f"surgery {event / one:.2f}, trace {traced / one:.1f} steps"
    return f"{name}: step {one:.2f} s; with scores {figures} of it; {others}"


if __name__ == "__main__":
    torch.manual_seed(0)
    for net in sys.argv[1:] or ["resnet18", "mobilenet_v2", "squeezenet1_1", "vgg11_bn"]:
        print(cost(net), flush=True)
