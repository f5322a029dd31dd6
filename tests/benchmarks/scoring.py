"""What scoring costs: a training step with scores over the same step without, in turns in one run.

python tests/benchmarks/scoring.py [--device cuda] [--nets resnet50:128:224 ...] [--half] [--last] [--compiled]

The limit is physical: every input of a layer that reads channels (for TaylorBatch: its weight), and its gradient, read
once more at the bandwidth that a copy of a large tensor reaches on this machine. "torch's operators" is the same
criterion without kernels of our own, and without sharing the copy that autocast makes of an input.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import torch
from subjects import Setting, Training, in_turns, parser, ratios, seconds, shown, write
from torch import Tensor

from lightning_taylor import Taylor, TaylorBatch
from lightning_taylor.scores import dot_products as products
from lightning_taylor.scores import formulas
from lightning_taylor.scores import taylor_hook as tap

CPU = ["resnet18:16:128", "vgg16:4:128", "mobilenet_v2:16:128"]
CUDA = ["resnet50:512:224", "vgg16:256:224", "mobilenet_v2:512:224", "convnext_tiny:256:224", "r3d_18:64:112"]


def bandwidth(device: str) -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.ones(2**28 if device == "cuda" else 2**26)
    source = source.to(device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device, 3) for _ in range(5))
    return 2 * source.numel() * source.element_size() / best


def bytes_read(training: Training) -> int:
    """Of all inputs that are scored, and their gradients, in one step."""
    found = [0]

    def counting(x: Tensor, grad: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found[0] += x.numel() * x.element_size() + grad.numel() * grad.element_size()
        return formulas.taylor_contributions(x, grad, *args, **kwargs)

    with mock.patch.object(tap, "taylor_contributions", counting), torch.compiler.set_stance("force_eager"):
        training.step()
    return found[0]


def transient(training: Training) -> int:
    """The most bytes that one step takes beyond what is there before it."""
    torch.cuda.synchronize()
    training.optimizer.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    training.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def waits(training: Training) -> str:
    """Whether the step waits for the device anywhere."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def measured(setting: Setting, turns: int, times: int, limit: float) -> dict[str, Any]:
    net = setting.model()
    graph = setting.traced(net)
    trainings = {"none": Training(setting, copy.deepcopy(net))}
    for criterion in (Taylor(), TaylorBatch()):
        training = Training(setting, copy.deepcopy(net))
        training.scorer = criterion.scorer(training.net, graph)
        trainings[type(criterion).__name__] = training
    for training in trainings.values():
        training.warm_up()
    runs: dict[str, Any] = {name: training.step for name, training in trainings.items()}
    if setting.device == "cuda" and not setting.compiled:
        slow = trainings["Taylor on torch's operators"] = Training(setting, copy.deepcopy(net))
        with mock.patch.object(tap, "_CASTING", frozenset()):
            slow.scorer = Taylor().scorer(slow.net, graph)

        def without() -> None:
            with mock.patch.object(products, "_kernels", return_value=None):
                slow.step()

        runs["Taylor on torch's operators"] = without
        without()
    found = in_turns(runs, setting.device, turns, times)
    step = sorted(found["none"])[turns // 2]
    row: dict[str, Any] = {"net": str(setting), "step": f"{step * 1e3:.1f} ms"}
    row |= {name: shown(ratios(found, name, "none")) for name in runs if name != "none"}
    weights = sum(2 * w.numel() * w.element_size() for w in trainings["TaylorBatch"].scorer._weights.values())  # type: ignore[union-attr]
    read = bytes_read(trainings["Taylor"])
    for name, count in (("Taylor", read), ("TaylorBatch", weights)):
        row[f"limit of {name}"] = f"{1 + count / limit / step:.3f} ({count / 1e9:.2f} GB)"
    if setting.device == "cuda":
        peak = transient(trainings["none"])
        for name in ("Taylor", "TaylorBatch"):
            row[f"memory, {name}"] = f"{transient(trainings[name]) / peak:.3f}"
            row[f"waits, {name}"] = waits(trainings[name])
    return row


def main() -> None:
    asked = parser(__doc__, "scoring", help="name:batch:side")
    asked.add_argument("--half", action="store_true")
    asked.add_argument("--last", action="store_true")
    asked.add_argument("--compiled", action="store_true")
    asked.add_argument("--turns", type=int, default=12)
    asked.add_argument("--times", type=int, default=1, help="steps in a row")
    args = asked.parse_args()
    limit = bandwidth(args.device)
    rows = []
    for text in args.nets or (CUDA if args.device == "cuda" else CPU):
        setting = Setting.of(text, args.device, args.half, args.last, args.compiled)
        rows.append(measured(setting, args.turns, args.times, limit))
        title = f"Scoring over a plain training step; median (quartiles); a copy moves {limit / 1e9:.0f} GB/s"
        write(rows, title, args.out, args.name, args.device)
        torch.compiler.reset()


if __name__ == "__main__":
    main()
