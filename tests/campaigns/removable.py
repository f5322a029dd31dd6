"""How much can be removed, beside Torch-Pruning: the channels that its dependency graph takes for removable, and ours.

``python tests/campaigns/removable.py [--models 'resnet*' ...] [--out FILE] [--ours FILE] [--table [--write FILE]]``

Torch-Pruning is no dependency: ``uv run --with torch-pruning`` has it, or PYTHONPATH. ``--ours`` is what
``architectures.py`` has measured. Theirs counts the output channels of convolution and linear layers in the groups that
``get_all_groups`` finds, without those that only make the network's outputs, which it is told to ignore. Then its
``BasePruner`` removes a quarter of each group at random, and the network must still run: theirs is no promise.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn

from campaigns import architectures
from campaigns.children import outcome
from campaigns.measuring import OUTPUT, Example, Row
from campaigns.table import Store, arguments, versions, write_section
from lightning_taylor import trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.utilities.calls import tensors_in

SHARE = 0.25
GIVEN_UP = "longer than"


@dataclass
class Theirs:
    """What Torch-Pruning makes of one model.

    Attributes:
        model: its name.
        removable: channels in groups, or None if no dependency graph could be built.
        runs: whether the model runs without a quarter of each group.
        note: what went wrong.
    """

    model: str
    removable: int | None = None
    runs: bool = False
    note: str = ""


def measure(name: str, build: Callable[[], Example]) -> dict[str, Any]:
    """Build, count, remove, run; what goes wrong is written into the row."""
    import torch_pruning as tp

    row = Theirs(name)
    torch.manual_seed(0)
    model, args = build()
    graph = trace_channels(model, args, verify=False)
    ignored = [model.get_submodule(layer) for layer in output_layers(graph)]
    model.eval()
    try:
        found = tp.DependencyGraph().build_dependency(model, args, forward_fn=run)
        row.removable = count(found, found.get_all_groups(ignored_layers=ignored), graph, model)
    except Exception as error:
        row.note = said(error)
        return asdict(row)
    try:
        pruner = tp.pruner.BasePruner(
            model, args, tp.importance.RandomImportance(), pruning_ratio=SHARE, ignored_layers=ignored, forward_fn=run
        )
        pruner.step()
        with torch.no_grad():
            row.runs = bool(run(model, args))
    except Exception as error:
        row.note = said(error)
    return asdict(row)


def run(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """All outputs; its own way to call a model takes a tuple for one argument."""
    return [t for t in tensors_in(model(*args)) if t.is_floating_point()]


def output_layers(graph: ChannelGraph) -> list[str]:
    """The layers of which every channel reaches the output."""
    return [layer for layer, why in graph.frozen.items() if why == OUTPUT]


def count(found: Any, groups: Iterable[Any], graph: ChannelGraph, model: nn.Module) -> int:
    """The output channels, of the layers that our graph counts, that lie in any of the groups."""
    names = {module: name for name, module in model.named_modules()}
    free: dict[str, set[int]] = {}
    for group in groups:
        for dep, idxs in group:
            name = names.get(dep.target.module)
            if name in graph.layers and found.is_out_channel_pruning_fn(dep.handler):
                free.setdefault(name, set()).update(idxs)
    return sum(map(len, free.values()))


def said(error: Exception) -> str:
    """An error in one line, without an address of this machine."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def measured(name: str, build: Callable[[], Example], timeout: float) -> dict[str, Any]:
    """One row, made by a child that may hang or die."""

    def work() -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return measure(name, build)

    with tempfile.TemporaryDirectory() as folder:
        row, _, note = outcome(work, timeout, Path(folder) / "log")
    return row or asdict(Theirs(name, note=note.strip().splitlines()[-1]))


def markdown(ours: dict[str, Row], theirs: dict[str, Theirs], made: str) -> str:
    """Ours beside theirs, those first where ours is less, with the costliest reason."""
    given_up = [name for name, their in theirs.items() if their.note.startswith(GIVEN_UP)]
    both = [(ours[name], theirs[name]) for name in theirs if name in ours and name not in given_up]
    counted = [(our, their) for our, their in both if their.removable is not None]
    less = [(our, their) for our, their in counted if our.removable < (their.removable or 0)]
    still = [our for our, their in less if max(our.inexact, our.removable) < (their.removable or 0)]
    runs = sum(their.runs for _, their in both)
    lines = ["## Beside Torch-Pruning", "", made, ""]
    lines += [
        f"It builds a dependency graph for {len(counted)} of {len(both)} models, and {runs} still run when it has "
        f"removed a quarter of each group. Ours has fewer channels in {len(less)}, {len(still)} with "
        f"`allow_inexact_norms`. {len(given_up)} more that were given up on a busy processor are left out.",
        "",
        "| model | channels | ours | with inexact norms | theirs | theirs runs | where ours is less |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(our, their) for our, their in sorted(both, key=lambda b: (b not in less, b[0].model))]
    noted = [f"- **{their.model}**: {their.note}" for _, their in both if their.note]
    return "\n".join([*lines, "", "### What Torch-Pruning said", "", *noted, ""])


def _line(our: Row, their: Theirs) -> str:
    lower = their.removable is not None and our.removable < their.removable
    why = "; ".join(list(our.reasons)[:2]) if lower else ""
    inexact = max(our.inexact, our.removable)
    cells = (our.model, our.channels, our.removable, inexact, "-" if their.removable is None else their.removable)
    return "| " + " | ".join(map(str, (*cells, "yes" if their.runs else "no", why.replace("|", "\\|")))) + " |"


def main() -> None:
    """Fill the store, or make its table."""
    zoo = architectures.zoo()
    given, chosen = arguments(__doc__, zoo, "removable.jsonl", ours=Path(tempfile.gettempdir()) / "architectures.jsonl")
    theirs = Store(given.out, Theirs)
    if given.table:
        made = f"Measured and written by `tests/campaigns/removable.py`, with {versions('torch', 'torch-pruning')}."
        table = markdown(
            Store(given.ours, Row).rows, {name: theirs.rows[name] for name in chosen if name in theirs.rows}, made
        )
        write_section(given.write, "removable", table) if given.write else print(table)
        return
    for name in chosen:
        if name not in theirs.rows:
            print(theirs.add(measured(name, zoo[name], given.timeout)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
