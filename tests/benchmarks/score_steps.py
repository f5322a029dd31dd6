"""How many optimizer steps before an event have to be scored: how soon the ranking of the channels stands still.

A trained net goes on training for a window of steps, and every step is scored by itself. At the end of the window
stands the event: the truth is what ``--truth`` more batches say of the weights as they are then. Spearman's correlation
with it, over all channels of the net, of the scores of the last n steps, of n steps spread over the window, and of all
of them; and the share of the truth's least tenth of the channels that is in theirs.

    python tests/benchmarks/score_steps.py resnet20 --data cifar10_jpeg.zip --weights resnet20.th --out folder/
    python tests/benchmarks/score_steps.py squeezenet --data flowers12/ --weights squeezenet1_1.pt --out folder/
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from nets import NETS
from oracle import loss
from subjects import write
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_taylor import Taylor, TaylorBatch, trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.study.correlation import spearman

CRITERIA = {"Taylor": Taylor(), "TaylorBatch": TaylorBatch()}
NUMBERS = (1, 2, 4, 8, 16, 32, 64)
State = Mapping[str, Tensor]


def batches(data: Dataset[Any], size: int, seed: int) -> Iterator[Any]:
    """Shuffled anew in every epoch, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from DataLoader(data, size, shuffle=True, drop_last=True, generator=generator)


def scored(net: nn.Module, graph: ChannelGraph, batch: Any) -> dict[str, State]:
    """Make a training pass, and give what each criterion saw of it; the gradients stay."""
    scorers = {name: criterion.scorer(net, graph) for name, criterion in CRITERIA.items()}
    net.zero_grad()
    value = loss(net, batch)
    value.backward()
    for scorer in scorers.values():
        scorer.before_step()
        scorer.end_batch(examples=len(batch[0]))
        scorer.close()
    return {name: scorer.state() for name, scorer in scorers.items()}


def scores(states: list[State]) -> Tensor:
    """The scores of all channels, as if these steps and no other had been scored."""
    return sum(s["total"] for s in states) / sum(s["examples"] for s in states)  # type: ignore[return-value]


def least(score_C: Tensor) -> set[int]:
    return set(score_C.argsort()[: len(score_C) // 10].tolist())


def compared(states: list[State], truth_C: Tensor) -> tuple[float, float]:
    found_C = scores(states)
    return spearman(found_C, truth_C), len(least(found_C) & least(truth_C)) / len(least(truth_C))


def measured(args: argparse.Namespace, seed: int) -> dict[tuple[str, str], tuple[float, float]]:
    """(criterion, which steps) -> correlation and share, of one window."""
    net, data, example = NETS[args.net](argparse.Namespace(**vars(args)), seed)
    net.train()
    graph = trace_channels(net, example)
    stream = batches(data, args.batch, seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    window = []
    for batch in itertools.islice(stream, args.window):
        window.append(scored(net, graph, batch))
        optimizer.step()
    after = [scored(net, graph, batch) for batch in itertools.islice(stream, args.truth)]
    found = {}
    for name in CRITERIA:
        steps, truth_C = [s[name] for s in window], scores([s[name] for s in after])
        for n in NUMBERS:
            found[name, f"last {n}"] = compared(steps[-n:], truth_C)
            spread = [steps[-1 - i * args.window // n] for i in range(n)]
            found[name, f"spread {n}"] = compared(spread, truth_C)
        found[name, f"all {args.window}"] = compared(steps, truth_C)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", dest="folder", type=Path, default=Path("score_steps"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--window", type=int, default=200)
    parser.add_argument("--truth", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning before, for the SqueezeNet")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs = []
    for seed in args.seeds:
        runs.append(measured(args, seed))
        rows = []
        for which in dict.fromkeys(which for _, which in runs[0]):
            row: dict[str, Any] = {"steps": which}
            for name in CRITERIA:
                rank, share = (mean(run[name, which][i] for run in runs) for i in (0, 1))
                worst = min(run[name, which][0] for run in runs)
                row |= {name: f"{rank:.3f} (at least {worst:.3f})", f"least tenth, {name}": f"{share:.2f}"}
            rows.append(row)
        title = f"{args.net}, {len(runs)} windows of {args.window} steps of {args.batch} images, lr {args.lr}"
        write(rows, title, args.folder, f"score_steps_{args.net}_{args.lr}", "cpu")


if __name__ == "__main__":
    main()
