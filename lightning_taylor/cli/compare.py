"""``lightning-taylor compare``: how well each criterion ranks the channels of one's own trained network.

With ``--curves``, which ``compare_curves`` runs: what is left of the network's accuracy when each of them prunes it.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_taylor.cli.arguments import Parser, add_model_options, positive
from lightning_taylor.cli.checkpoint_model import Trained, read_trained
from lightning_taylor.cli.compare_curves import add_curve_options, run_curves
from lightning_taylor.cli.criteria import check_criteria, known_criteria
from lightning_taylor.cli.exit import fail
from lightning_taylor.cli.extras import require_extras
from lightning_taylor.cli.find_config import find_config
from lightning_taylor.fit.callback import TaylorPruning
from lightning_taylor.fit.options import OF_THE_TRACE
from lightning_taylor.study.correlation import Correlations, correlate
from lightning_taylor.study.correlation_table import CorrelationTable
from lightning_taylor.study.oracle import measure_oracle, sample_channels
from lightning_taylor.study.score_batches import gather_scores
from lightning_taylor.study.spot_check import training_loss
from lightning_taylor.trace.api import require_groups, trace_channels

if TYPE_CHECKING:
    from lightning_taylor.cli.config import FitConfig

__all__ = ["run"]

DESCRIPTION = (
    "Remove channels of a trained network one by one, measure the loss on training examples each time (the oracle), "
    "and show how well each criterion predicts it: Spearman's correlation, within layers and over all of them. With "
    "--curves: prune it with each criterion as it trains on, and show a validation metric against what remains."
)
EXAMPLES = """\
examples:
  lightning-taylor compare last.ckpt --config lightning_logs/version_0/config.yaml
  lightning-taylor compare seed0.ckpt seed1.ckpt seed2.ckpt --config my.yaml --fraction 0.2 --out compared
  lightning-taylor compare last.ckpt --config my.yaml --curves --criteria Taylor Random --target 0.3 --seeds 0 1
  lightning-taylor compare --config my.yaml    the network as the configuration builds it, such as a pretrained one
The YAML is one for `lightning-taylor fit`: of its TaylorPruning count the criterion, which is compared with the others,
and the layers to ignore; --curves follows its other settings, too, but for the target. What has a dot in its name is an
option of `lightning-taylor fit`, such as --data.batch_size 32.
Checkpoints of one network from several seeds become one table. What was measured is kept in --out, and an
interrupted run goes on there."""
CORRELATING = ("examples", "batch_size", "fraction", "copies", "signed", "resamples", "layers")
"""Options that ``--curves`` does not read; it has no use for inputs or a part of the module either."""


def run(args: list[str]) -> None:
    """Measure what is not measured yet, and show the table."""
    parser = _parser()
    only_curves = add_curve_options(parser)
    own, of_fit = _split(args)
    asked = parser.parse_args(own)
    unread = (*CORRELATING, "input_shape", "submodule") if asked.curves else only_curves
    for name in unread:
        if getattr(asked, name) != parser.get_default(name):
            fail(2, f"--{name.replace('_', '-')} has no meaning {'with' if asked.curves else 'without'} --curves")
    if asked.out.exists() and not asked.out.is_dir():
        fail(2, f"--out {asked.out} is a file: give a folder for what is measured")
    require_extras("cli")  # it needs a configuration in any case
    config = find_config(asked, of_fit)
    if config is None:
        named = f"{asked.model} is a class, and " if asked.model else ""
        fail(2, f"{named}compare needs training data: give --config the YAML of the fit, with its `model` and `data`")
    config.require_data()
    if asked.curves:
        run_curves(asked, config, lambda: _checkpoints(asked, config))
    else:
        _correlate(asked, config)


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own options, and those of a fit, which have a dot in their names."""
    own: list[str] = []
    of_fit: list[str] = []
    taken = own
    for arg in args:
        if arg.startswith("--"):
            taken = of_fit if "." in arg.split("=")[0] else own
        taken.append(arg)
        if taken is of_fit and ("=" in arg or not arg.startswith("--")):
            taken = own
    return own, of_fit


def _checkpoints(asked: argparse.Namespace, config: FitConfig) -> list[str]:
    """Those of the command line, the configuration's ``ckpt_path``, or the network as the configuration builds it."""
    if asked.checkpoints and asked.ckpt_path:
        fail(2, f"the checkpoints are given twice, as {asked.checkpoints[0]} and as --ckpt_path {asked.ckpt_path[0]}")
    if given := asked.checkpoints or asked.ckpt_path:
        return given
    if named := config.content.get("ckpt_path"):
        return [named]
    from lightning_taylor.cli.dry_fit import start_checkpoint  # needs the extra cli

    start = start_checkpoint(config, asked.out / "start.ckpt")
    print(f"no checkpoint was given: this is the network as {config.name} builds it, {start}", file=sys.stderr)
    return [str(start)]


def _correlate(asked: argparse.Namespace, config: FitConfig) -> None:
    pruning = config.pruning() or TaylorPruning()
    check_criteria(asked.criteria or (), known_criteria(pruning))
    paths = _checkpoints(asked, config)
    data = config.data_module()
    data.prepare_data()
    data.setup("fit")
    asked.out.mkdir(parents=True, exist_ok=True)
    runs: list[Correlations] = []
    for seed, path in enumerate(paths):
        trained, batches = read_trained(path, asked, config), _batches(data, asked, seed)
        runs.append(_compare(asked, trained, pruning, batches, seed))
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


def _compare(
    asked: argparse.Namespace, trained: Trained, pruning: TaylorPruning, batches: list[Any], seed: int
) -> Correlations:
    """One checkpoint's correlations; its seed draws the examples, the channels and whatever is random."""
    module, inputs = trained.module, trained.inputs
    sought = {name: getattr(pruning, name) for name in OF_THE_TRACE}
    graph = require_groups(trace_channels(module, dict(inputs.kwargs) or inputs.args, **sought))
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to `self.log\\(\\)` but the `self.trainer` reference")
        oracle = measure_oracle(
            module,
            graph,
            batches,
            _loss,
            channels=sample_channels(graph, asked.fraction, generator=generator),
            copies=asked.copies,
            state=asked.out / f"oracle_{Path(trained.path).stem}_{seed}.pt",
            progress=not asked.json,
        )
        known = known_criteria(pruning, seed=seed)
        criteria = {name: known[name] for name in asked.criteria or known}
        gathered = gather_scores(module, graph, criteria, batches, _loss)
    return correlate(oracle, gathered, signed=asked.signed, resamples=asked.resamples)


def _loss(module: nn.Module, batch: Any) -> Tensor:
    """What the training step makes of a batch; a mistake in it ends the command."""
    try:
        return training_loss(module, batch)
    except ValueError as error:
        fail(2, f"{error}, and compare needs its loss")


def _batches(data: Any, asked: argparse.Namespace, seed: int) -> list[Any]:
    """Training examples without augmentation where the data module can give them so, the same for the same seed."""
    loader = getattr(data, "plain_train_dataloader", data.train_dataloader)()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(loader, DataLoader) and hasattr(loader.dataset, "__len__"):
            some = torch.randperm(len(loader.dataset))[: asked.examples].tolist()  # type: ignore[arg-type]
            loader = DataLoader(Subset(loader.dataset, some), asked.batch_size, collate_fn=loader.collate_fn)
            return list(loader)
        wanted = -(-asked.examples // asked.batch_size)
        return [batch for _, batch in zip(range(wanted), loader, strict=False)]


def _parser() -> Parser:
    parser = Parser("compare", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "checkpoints", metavar="CKPT", nargs="*",
        help="of one network; several for several seeds. By default the config's ckpt_path, or the network as the "
        "config builds it",
    )  # fmt: skip
    parser.add_argument("--ckpt_path", "--ckpt-path", nargs="+", metavar="CKPT", help="the same, as `validate` has it")
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
