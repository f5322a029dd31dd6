"""How much of the FLOPs' ratio is realised as time: nets pruned for FLOPs beside nets pruned for latency.

    python tests/benchmarks/realised.py [--device cuda] [--nets resnet18:16:64 ...] [--target 0.5] [--busy]

Each net is pruned by a short fit, once to a share of its FLOPs and once to as large a share of its latency at the batch
of the fit; then dense and pruned net run in turns, as in ``speedup.py``.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from accuracy import flops
from speedup import compared, ways
from subjects import Setting, clock_of, parser, write
from targets import fitted


def main() -> None:
    asked = parser(__doc__, "realised", default=["resnet18:16:64", "mobilenet_v2:16:64"])
    asked.add_argument("--target", type=float, default=0.5)
    asked.add_argument("--resources", nargs="+", default=["flops", "latency"])
    asked.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    asked.add_argument("--steps", type=int, default=20)
    asked.add_argument("--turns", type=int, default=20)
    asked.add_argument("--uncompiled", action="store_true", help="leave compiled code out")
    asked.add_argument("--busy", action="store_true", help="processor time in one thread")
    args = asked.parse_args()
    clock = clock_of(args.busy)
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    for text in args.nets:
        setting = Setting.of(text, args.device)
        for resource in args.resources:
            with tempfile.TemporaryDirectory() as folder:
                nets, _ = fitted(setting, resource, args.target, args.steps, clock, folder)
            example = setting.images(1, setting.side)
            ratio = flops(nets["dense"], example) / flops(nets["pruned"], example)
            for batch in args.batches:
                torch.compiler.reset()
                x = setting.images(batch, setting.side).to(args.device)
                dense, pruned = (ways(net, x, compiled=not args.uncompiled) for net in nets.values())
                found = compared(dense, pruned, ratio, args.device, args.turns, clock)
                asked_for = f"{resource} {args.target:g}"
                rows += [{"net": str(setting), "asked": asked_for, "batch": batch} | row for row in found]
            write(rows, "What is realised of the FLOPs' ratio", args.out, args.name, args.device)


if __name__ == "__main__":
    main()
