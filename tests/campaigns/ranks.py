"""Random fits on several gloo ranks until so many events have happened: how far do the ranks come apart?

``python tests/campaigns/ranks.py --events 50 --ranks 4 --seed 0`` ends with an error if it is not zero.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import zoo
from fit.rank_fits import Case, Ranked, RankedByHand, fits, spread

from lightning_taylor import Gradual, Iterative, Random, Taylor, TaylorBatch, WeightMagnitude

NETS = {"residual": zoo.Residual, "concat": zoo.Concat, "inverted": zoo.Inverted, "vgg": zoo.vgg}
OPTIMIZERS = [
    ("AdamW", {}),
    ("SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"lr": 1e-4, "momentum": 0.9}),
    ("Adagrad", {}),
    ("NAdam", {"weight_decay": 1e-2}),
]


def draw(random_: random.Random) -> tuple[str, Case]:
    """A fit of any kind, and its description."""
    net, optimizer = random_.choice(list(NETS)), random_.choice(OPTIMIZERS)
    criterion = random_.choice([Taylor(), Taylor("mean"), TaylorBatch(), WeightMagnitude(), Random()])
    schedule = random_.choice([Gradual(1, 1, 14), Gradual(2, 2, 14, "linear"), Iterative(1, random_.randint(1, 3))])
    module = random_.choice([Ranked, Ranked, RankedByHand])
    ddp = {name: True for name in ("static_graph", "gradient_as_bucket_view") if random_.random() < 0.4}
    # Torch itself fails where a static graph's first backward pass is not synchronised.
    accumulated = random_.choice([1, 1, 2]) if module is Ranked and "static_graph" not in ddp else 1
    precision = random_.choice(["32-true", "32-true", "bf16-mixed", "64-true"])
    case = Case(
        NETS[net],
        module,
        ddp,
        {"accumulate_grad_batches": accumulated, "precision": precision, "max_epochs": 2 * accumulated},
        {"target": random_.uniform(0.3, 0.7), "schedule": schedule, "criterion": criterion},
        optimizer,
        random_.randrange(1000),
    )
    kind = f"{net}, {optimizer[0]}, {criterion}, {type(schedule).__name__}, {module.__name__}, {precision}"
    return f"{kind}, accumulate {accumulated}, {'+'.join(ddp) or 'plain'}", case


def main(arguments: list[str] | None = None) -> bool:
    """Run the fits; whether all ranks were equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    random_, began = random.Random(options.seed), time.monotonic()
    events, steps, fitted, largest = 0, 0, 0, 0.0
    while events < options.events:
        kind, case = draw(random_)
        with tempfile.TemporaryDirectory() as folder:
            results = fits(options.ranks, case, Path(folder))
        found = spread(results)
        events, steps, fitted = events + len(results[0]["events"]), steps + len(results[0]["steps"]), fitted + 1
        largest = max(largest, *found.values())
        print(f"{len(results[0]['events']):2} events, largest difference {max(found.values()):g}: {kind}", flush=True)
        for name, gap in found.items():
            if gap:
                print(f"    {name}: {gap:g}", flush=True)
    print(
        f"{options.ranks} ranks, seed {options.seed}: {events} events in {fitted} fits, {steps} steps compared, "
        f"largest difference {largest:g}, {time.monotonic() - began:.0f} s"
    )
    return largest == 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.exit(not main())
