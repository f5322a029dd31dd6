"""What a fit costs that scores every step, and one that scores the last before each event, over one without a pruner.

    python tests/benchmarks/scored_fit.py [--nets mobilenet_v2:8:64 ...] [--steps 200] [--every 100] [--choices all 32]

Processor time in one thread. The fits are under way together, one of them at a time, ten steps each: what the machine
does meets all of them alike. An event removes one channel, so that the net stays the size it was: what is left over is
the trace, the scores, the events and the report.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import lightning as L
from subjects import Setting, clock_of, parser, write
from whole_fit import Fit

from lightning_taylor import Criterion, Iterative, Taylor, TaylorBatch, TaylorPruning

CRITERIA: dict[str, type[Criterion]] = {"Taylor": Taylor, "TaylorBatch": TaylorBatch}


class Baton:
    """What the only fit that may run has, and hands over to the next."""

    def __init__(self, names: list[str]) -> None:
        self._order = deque(names)
        self._turns = {name: Semaphore(0) for name in names}
        self._turns[names[0]].release()

    def take(self, name: str) -> None:
        self._turns[name].acquire()

    def hand_over(self) -> None:
        self._order.rotate(-1)
        self._turns[self._order[0]].release()

    def leave(self, name: str) -> None:
        self._order.remove(name)
        if self._order:
            self._turns[self._order[0]].release()


class Turns(L.Callback):
    """Lets the other fits run after every ten steps."""

    def __init__(self, baton: Baton, name: str) -> None:
        self._baton, self._name = baton, name

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % 10 == 0:
            self._baton.hand_over()
            self._baton.take(self._name)


def together(runs: Mapping[str, Callable[[L.Callback], float]]) -> dict[str, float]:
    """What each run returns; each is given the callback by which the others have their turns."""
    baton = Baton(list(runs))

    def run(name: str) -> float:
        baton.take(name)
        try:
            return runs[name](Turns(baton, name))
        finally:
            baton.leave(name)

    with ThreadPoolExecutor(len(runs)) as threads:
        return dict(zip(runs, threads.map(run, runs), strict=True))


def pruner(criterion: Criterion, every: int, score_batches: Any) -> TaylorPruning:
    schedule = Iterative(every_n_steps=every, channels_per_event=1)
    options: dict[str, Any] = {"measure_latency": False, "verbose": False, "round_to": 1}
    return TaylorPruning(0.5, schedule, criterion, score_batches=score_batches, **options)


def main() -> None:
    asked = parser(__doc__, "scored_fit", default=["mobilenet_v2:8:64"])
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--every", type=int, default=100)
    asked.add_argument("--choices", nargs="+", default=["all", "32", "8"])
    args = asked.parse_args()
    clock_of(True)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = []
    for text in args.nets:
        setting = Setting.of(text, args.device)
        with tempfile.TemporaryDirectory() as folder:

            def fit(*callbacks: L.Callback, setting: Setting = setting, folder: str = folder) -> float:
                return Fit(setting, args.steps, list(callbacks), folder, time.thread_time).seconds

            runs: dict[str, Callable[[L.Callback], float]] = {"no pruner": fit}
            for name, kind in CRITERIA.items():
                for choice in args.choices:
                    callback = pruner(kind(), args.every, int(choice) if choice.isdigit() else choice)
                    runs[f"{name}, {choice}"] = lambda turns, callback=callback, fit=fit: fit(callback, turns)
            Fit(setting, 5, [], folder, time.thread_time)
            times = together(runs)
        base = times.pop("no pruner")
        row = {"net": str(setting), "no pruner": f"{base:.1f} s"}
        rows.append(row | {name: f"{found / base:.3f}" for name, found in times.items()})
        title = f"Processor time of a fit of {args.steps} steps, an event every {args.every}, over one without a pruner"
        write(rows, title, args.out, args.name, args.device)


if __name__ == "__main__":
    main()
