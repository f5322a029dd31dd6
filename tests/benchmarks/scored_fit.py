"""What a fit costs that scores every step, and one that scores the last before each event, over one without a pruner.

    python tests/benchmarks/scored_fit.py [--nets mobilenet_v2:8:64 ...] [--steps 200] [--every 100] [--turns 3]

Processor time in one thread, the fits in turns. An event removes one channel, so that the net stays the size it was:
what is left over is the trace, the scores and the events.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from subjects import Setting, clock_of, parser, write
from whole_fit import Fit

from lightning_taylor import Criterion, Iterative, Taylor, TaylorBatch, TaylorPruning

CRITERIA: dict[str, type[Criterion]] = {"Taylor": Taylor, "TaylorBatch": TaylorBatch}


def pruner(criterion: Criterion, every: int, score_batches: Any) -> TaylorPruning:
    schedule = Iterative(every_n_steps=every, channels_per_event=1)
    options: dict[str, Any] = {"measure_latency": False, "verbose": False, "round_to": 1}
    return TaylorPruning(0.5, schedule, criterion, score_batches=score_batches, **options)


def main() -> None:
    asked = parser(__doc__, "scored_fit", default=["mobilenet_v2:8:64"])
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--every", type=int, default=100)
    asked.add_argument("--turns", type=int, default=3)
    asked.add_argument("--choices", nargs="+", default=["all", "32", "8"])
    args = asked.parse_args()
    clock = clock_of(True)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = []
    for text in args.nets:
        setting = Setting.of(text, args.device)
        with tempfile.TemporaryDirectory() as folder:
            Fit(setting, 5, [], folder, clock)
            times: dict[str, list[float]] = {}
            for _ in range(args.turns):
                times.setdefault("", []).append(Fit(setting, args.steps, [], folder, clock).seconds)
                for name, kind in CRITERIA.items():
                    for choice in args.choices:
                        callback = pruner(kind(), args.every, int(choice) if choice.isdigit() else choice)
                        made = Fit(setting, args.steps, [callback], folder, clock)
                        times.setdefault(f"{name}, {choice}", []).append(made.seconds)
        row = {"net": str(setting), "no pruner": f"{median(times['']):.1f} s"}
        for name, found in times.items():
            if name:
                ratios = [a / b for a, b in zip(found, times[""], strict=True)]
                row[name] = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        rows.append(row)
        title = f"Processor time of a fit of {args.steps} steps, an event every {args.every}, over one without a pruner"
        write(rows, title, args.out, args.name, args.device)


if __name__ == "__main__":
    main()
