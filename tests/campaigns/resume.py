"""How often a fit that is killed after a random step and resumed ends bit for bit as if it had not been.

``python tests/campaigns/resume.py --kills 10 --seed 0`` prints a line per cell of
{1, 2 processes} x {float32, bfloat16} x {kind of fit}, and ends with an error if any fit differs.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fit.resuming import parted, run_ranks, steps_of

KINDS = ("plain", "ema", "accumulated", "two optimizers")
PRECISIONS = ("32-true", "bf16-mixed")


def cell(ranks: int, precision: str, kind: str, kills: int, seed: int) -> dict[int, list[str]]:
    """Step of each kill -> what differed after the resumed fit."""
    draw = random.Random(f"{seed} {ranks} {precision} {kind}")
    possible = range(1, steps_of(kind))
    steps = sorted(draw.sample(possible, min(kills, len(possible))))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        run_ranks(ranks, whole, kind, precision=precision)
        for step in steps:
            parts = Path(folder, str(step))
            run_ranks(ranks, parts, kind, precision=precision, kill=step)
            run_ranks(ranks, parts, kind, precision=precision, resume=parts / "kill.ckpt")
            found[step] = parted(ranks, kind, whole, parts)
    return found


def main(arguments: list[str] | None = None) -> bool:
    """Run the table; whether every fit was bit-equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="random steps per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args(arguments)
    every, equal = 0, 0
    for ranks, precision, kind in itertools.product(options.ranks, options.precisions, options.kinds):
        began = time.monotonic()
        found = cell(ranks, precision, kind, options.kills, options.seed)
        good = sum(not differing for differing in found.values())
        every, equal = every + len(found), equal + good
        steps = " ".join(map(str, found))
        seconds = time.monotonic() - began
        print(
            f"{ranks} process(es), {precision:10}, {kind:14}: {good} of {len(found)} bit-equal "
            f"(killed after {steps}; {seconds:.0f} s)",
            flush=True,
        )
        for step, differing in found.items():
            if differing:
                print(f"    after {step}: {', '.join(differing[:6])}", flush=True)
    print(f"{equal} of {every} bit-equal, seed {options.seed}")
    return equal == every


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.exit(not main())
