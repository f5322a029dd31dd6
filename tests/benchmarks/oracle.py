"""Table 1 for real networks: every criterion against the oracle, on training images, over several seeds.

For each seed the net is fine-tuned once. A sample of its channels is removed one by one (the oracle), and all criteria
are scored on the same images, in evaluation mode. What is finished is not done again.

    python tests/benchmarks/oracle.py squeezenet --data flowers12/ --weights squeezenet1_1.pt --out folder/
    python tests/benchmarks/oracle.py resnet20 --data cifar10_jpeg.zip --weights resnet20.th --out folder/
    python tests/benchmarks/oracle.py vgg16_bn --data cifar10_jpeg.zip --out folder/
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from nets import NETS
from study.curvature import gather_curvature
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_taylor.study.correlation import Correlations, correlate
from lightning_taylor.study.correlation_table import CorrelationTable
from lightning_taylor.study.oracle import measure_oracle, sample_channels
from lightning_taylor.study.score_batches import Gathered, every_criterion, gather_scores
from lightning_taylor.trace.api import trace_channels


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def logits(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def run(args: argparse.Namespace, seed: int, gather: Callable[..., Gathered]) -> dict[str, Any]:
    model, data, example = NETS[args.net](argparse.Namespace(**vars(args)), seed)
    model.eval()
    graph = trace_channels(model, example)
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(data), generator=generator)[: args.images].tolist()  # type: ignore[arg-type]
    batches = list(DataLoader(Subset(data, some), args.batch))
    channels = sample_channels(graph, args.fraction, least=8, generator=generator)
    began = time.perf_counter()
    oracle = measure_oracle(
        model, graph, batches, loss, channels=channels, state=args.folder / f"oracle_{args.net}_{seed}.pt"
    )
    measured = time.perf_counter() - began
    gathered = gather(seed, model, graph, batches)
    found = {
        "seed": seed,
        "loss": oracle.loss,
        "of_channels": sum(group.size for group in graph.groups.values()),
        "oracle_seconds": round(measured, 1),
        "absolute": correlate(oracle, gathered, resamples=args.resamples).to_plain(),
        "signed": correlate(oracle, gathered, signed=True, resamples=0).to_plain(),
    }
    return found | {"settings": {k: getattr(args, k) for k in ("images", "batch", "fraction", "epochs")}}


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The correlations of both parts' criteria; the rest is of the first."""
    for kind, part in itertools.product(("absolute", "signed"), ("scopes", "layers", "resampled")):
        one[kind][part] |= other[kind][part]
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="not for vgg16_bn, which is trained here")
    parser.add_argument("--out", dest="folder", type=Path, default=Path("oracle"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--fraction", type=float, default=0.1, help="of each group's channels, 8 at least")
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning, for the SqueezeNet")
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parts: dict[str, Callable[..., Gathered]] = {
        "": lambda seed, model, graph, data: gather_scores(model, graph, every_criterion(seed=seed), data, loss),
        "_exact": lambda _, model, graph, data: gather_curvature(model, graph, data, logits),
    }
    rows = []
    for seed in args.seeds:
        found = []
        for part, gather in parts.items():
            file = args.folder / f"{args.net}_{seed}{part}.json"
            if not file.exists():
                file.write_text(json.dumps(run(args, seed, gather)))
            found.append(json.loads(file.read_text()))
        rows.append(joined(*found))
        print(f"seed {seed}: loss {rows[-1]['loss']:.4f}, oracle {rows[-1]['oracle_seconds']} s", flush=True)
    for kind in ("absolute", "signed"):
        print(f"\noracle, {kind}:")
        table = CorrelationTable([Correlations(**row[kind]) for row in rows])
        table.show()
        table.write(args.folder / f"{args.net}_{kind}_table.json")
        if kind == "absolute":
            table.figure().savefig(args.folder / f"{args.net}_table.png", dpi=130)


if __name__ == "__main__":
    main()
