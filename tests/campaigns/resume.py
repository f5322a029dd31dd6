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
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fit.resuming import parted, run_each_on_ranks, steps_of

KINDS = ("plain", "ema", "accumulated", "two optimizers")
PRECISIONS = ("32-true", "bf16-mixed")


def fits_of(ranks: int, precision: str, kinds: Sequence[str], kills: int, seed: int) -> dict[str, dict[int, list[str]]]:
    """Kind -> step of each kill -> what differed after the resumed fit.

    Every fit that goes on does so in processes that have not seen the one that was killed.
    """
    steps = {}
    for kind in kinds:
        draw, possible = random.Random(f"{seed} {ranks} {precision} {kind}"), range(1, steps_of(kind))
        steps[kind] = sorted(draw.sample(possible, min(kills, len(possible))))
    how = {"precision": precision}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {(kind, step): folder / kind / str(step) for kind in kinds for step in steps[kind]}
        whole = [(folder / kind / "whole", kind, how) for kind in kinds]
        killed = [(part, kind, {**how, "kill": step}) for (kind, step), part in parts.items()]
        run_each_on_ranks(ranks, [*whole, *killed])
        run_each_on_ranks(
            ranks, [(part, kind, {**how, "resume": part / "kill.ckpt"}) for (kind, _), part in parts.items()]
        )
        return {
            kind: {step: parted(ranks, kind, folder / kind / "whole", parts[kind, step]) for step in steps[kind]}
            for kind in kinds
        }


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
    for ranks, precision in itertools.product(options.ranks, options.precisions):
        for kind, differing_at in fits_of(ranks, precision, options.kinds, options.kills, options.seed).items():
            good = sum(not differing for differing in differing_at.values())
            every, equal = every + len(differing_at), equal + good
            steps = " ".join(map(str, differing_at))
            said = f"{good} of {len(differing_at)} bit-equal (killed after {steps})"
            print(f"{ranks} process(es), {precision:10}, {kind:14}: {said}", flush=True)
            for step, differing in differing_at.items():
                if differing:
                    print(f"    after {step}: {', '.join(differing[:6])}", flush=True)
    print(f"{equal} of {every} bit-equal, seed {options.seed}")
    return equal == every


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.exit(not main())
