"""``lightning-taylor compare``: how well each criterion ranks the channels of one's own trained network.

With ``--curves``, which ``cli.curves`` runs: what is left of the network's accuracy when each of them prunes it.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_taylor.cli.arguments import Parser, add_model_options, positive
from lightning_taylor.cli.classes import import_class, read_config
from lightning_taylor.cli.curves import add_curve_options, run_curves
from lightning_taylor.cli.failure import fail
from lightning_taylor.cli.messages import nearest
from lightning_taylor.cli.trained import read_trained
from lightning_taylor.graph.trace import require_groups, trace_channels
from lightning_taylor.study import (
    Correlations,
    CorrelationTable,
    correlate,
    every_criterion,
    gather_scores,
    measure_oracle,
    sample_channels,
)
from lightning_taylor.study.spot import training_loss

__all__ = ["run"]

DESCRIPTION = (
    "Remove channels of a trained network one by one, measure the loss on training examples each time (the oracle), "
    "and show how well each criterion predicts it: Spearman's correlation, within layers and over all of them. With "
    "--curves: prune it with each criterion as it trains on, and show a validation metric against what remains."
)
EXAMPLES = """\
examples:
  lightning-taylor compare last.ckpt --model lightning_logs/version_0/config.yaml
  lightning-taylor compare seed0.ckpt seed1.ckpt seed2.ckpt --model my.yaml --fraction 0.2 --out compared
  lightning-taylor compare last.ckpt --model my.yaml --curves --criteria Taylor Random --target 0.3 --seeds 0 1
Checkpoints of one network from several seeds become one table. What was measured is kept in --out, and an
interrupted run goes on there."""
CORRELATING = ("examples", "batch_size", "fraction", "copies", "signed", "resamples", "layers")
"""Options that ``--curves`` does not read; it has no use for inputs or a part of the module either."""


def run(args: list[str]) -> None:
    """Measure what is not measured yet, and show the table."""
    parser = _parser()
    only_curves = add_curve_options(parser)
    asked = parser.parse_args(args)
    unread = (*CORRELATING, "input_shape", "submodule") if asked.curves else only_curves
    for name in unread:
        if getattr(asked, name) != parser.get_default(name):
            fail(2, f"--{name.replace('_', '-')} has no meaning {'with' if asked.curves else 'without'} --curves")
    if asked.curves:
        run_curves(asked)
    else:
        _correlate(asked)


def _correlate(asked: argparse.Namespace) -> None:
    known = every_criterion()
    for name in asked.criteria or ():
        if name not in known:
            fail(2, f"--criteria: no criterion {name!r}{nearest(name, list(known))}; there are {', '.join(known)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = [_compare(asked, path, seed) for seed, path in enumerate(asked.checkpoints)]
    table = CorrelationTable(runs)
    table.write(asked.out / "correlation.json")
    if asked.json:
        print(json.dumps(table.to_plain(), indent=1))
    else:
        table.show(Console(file=sys.stdout, highlight=False), layers=asked.layers)
    try:
        table.figure().savefig(asked.out / "correlation.png", dpi=130)
    except ImportError as error:
        print(f"no figure: {error}", file=sys.stderr)


def _compare(asked: argparse.Namespace, path: str, seed: int) -> Correlations:
    """One checkpoint's correlations; its seed draws the examples, the channels and whatever is random."""
    module = read_trained(path, asked)
    graph = require_groups(trace_channels(module.module, dict(module.inputs.kwargs) or module.inputs.args))
    batches = _batches(asked, seed)
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to `self.log\\(\\)` but the `self.trainer` reference")
        oracle = measure_oracle(
            module.module,
            graph,
            batches,
            _loss,
            channels=sample_channels(graph, asked.fraction, generator=generator),
            copies=asked.copies,
            state=asked.out / f"oracle_{Path(path).stem}_{seed}.pt",
            progress=not asked.json,
        )
        every = every_criterion(seed=seed)
        criteria = {name: every[name] for name in asked.criteria or every}
        gathered = gather_scores(module.module, graph, criteria, batches, _loss)
    return correlate(oracle, gathered, signed=asked.signed, resamples=asked.resamples)


def _loss(module: nn.Module, batch: Any) -> Tensor:
    """What the training step makes of a batch; a mistake in it ends the command."""
    try:
        return training_loss(module, batch)
    except ValueError as error:
        fail(2, f"{error}, and compare needs its loss")


def _batches(asked: argparse.Namespace, seed: int) -> list[Any]:
    """Training examples without augmentation where the data module can give them so, the same for the same seed."""
    config = read_config(asked.model)
    data = None if config is None else config.get("data")
    if not data:
        fail(2, "compare needs training data: give --model the config.yaml of the fit, with its `data`")
    datamodule = _data_module(data if isinstance(data, dict) else {"class_path": data})
    loader = getattr(datamodule, "plain_train_dataloader", datamodule.train_dataloader)()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(loader, DataLoader) and hasattr(loader.dataset, "__len__"):
            some = torch.randperm(len(loader.dataset))[: asked.examples].tolist()  # type: ignore[arg-type]
            loader = DataLoader(Subset(loader.dataset, some), asked.batch_size, collate_fn=loader.collate_fn)
            return list(loader)
        wanted = -(-asked.examples // asked.batch_size)
        return [batch for _, batch in zip(range(wanted), loader, strict=False)]


def _data_module(data: dict[str, Any]) -> Any:
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    import_class(data["class_path"], "data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    datamodule = parser.instantiate(parser.parse_object({"data": data}))["data"]
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def _parser() -> Parser:
    parser = Parser("compare", DESCRIPTION, EXAMPLES)
    parser.add_argument("checkpoints", metavar="CKPT", nargs="+", help="of one network; several for several seeds")
    parser.add_argument(
        "--curves", action="store_true", help="prune with each criterion, and show a metric against what remains"
    )
    parser.add_argument(
        "--examples", type=positive, default=256, metavar="N", help="of the training set; 256 by default"
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="16 by default")
    parser.add_argument(
        "--fraction", type=_fraction, default=0.1, metavar="F",
        help="of each group's channels that the oracle removes, at least 8 of each; 0.1 by default, 1 for all",
    )  # fmt: skip
    parser.add_argument(
        "--copies", type=positive, default=16, metavar="N",
        help="channels that are removed at once, each in a copy: less memory with fewer; 16 by default",
    )  # fmt: skip
    parser.add_argument("--criteria", nargs="+", metavar="NAME", help="only these, as the table names them")
    parser.add_argument("--signed", action="store_true", help="compare with the signed change of the loss")
    parser.add_argument(
        "--resamples", type=positive, default=100, metavar="N", help="of the batches, for the intervals; 100 by default"
    )
    parser.add_argument("--layers", action="store_true", help="show the correlation within each group, too")
    parser.add_argument(
        "--out", type=Path, default=Path("compared"), metavar="DIR",
        help="for what is measured, correlation.json and correlation.png, or curves.jsonl and curves.png; ./compared "
        "by default",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    add_model_options(parser)
    return parser


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in (0, 1], got {text!r}")
    return value
