"""A whole fit of networks at their real size: events, a checkpoint between two of them, and a resume, bit for bit.

``python tests/campaigns/end_to_end.py [--models 'vit*' ...] [--out FILE] [--timeout S] [--table [--write FILE]]``

The data is made, and the weights are random: neither changes what is removed together, carried along and resumed.
"""

from __future__ import annotations

import logging
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from fit.resuming import differences
from torch import nn

from campaigns.children import outcome
from campaigns.measuring import limit_memory
from campaigns.real_fits import EVENTS, KEPT, STEPS, fit, learnt
from campaigns.real_nets import CASES, Case
from campaigns.table import Store, arguments, versions, write_section
from lightning_taylor import TaylorPruning
from lightning_taylor.fit import callback
from lightning_taylor.plan.cost import CostModel

PACKAGES = ("torch", "torchvision", "lightning")
ORDER = ("wrong", "error", "timeout", "right")
REMARK = (
    f"{STEPS} steps of AdamW, {EVENTS} events after steps 2 to 8 down to the target; a fresh network goes on from the "
    f"checkpoint of step {KEPT}, and its weights, buffers, optimizer state and all events must end as those of the fit "
    "that nothing interrupted, bit for bit. *wrong*: not so, or the target missed. *settings*: the criterion, whose "
    "scores are compared without a normalisation unless one is named. *removed*: units of every kind that was expected "
    "to go, before and after. *trace s*: seconds of one processor core, the proof included. "
    "GFLOPs are of one example, 2 per multiply-add."
)


@dataclass
class Row:
    """What became of one fit.

    Attributes:
        model: its name.
        status: "right", "wrong", "error" or "timeout".
        note: what went wrong.
        inputs: shape of a batch.
        target: share of the FLOPs that may remain; ``share`` is what does.
        dense, pruned: FLOPs of one example.
        events: removals of at least one channel.
        trace_seconds: of one processor core, the proof included; ``seconds`` by the clock, of both fits.
        differing: what was not bit-equal after the resume.
        resumed: whether it came to an end.
        units: kind -> how many there were, and are.
    """

    model: str
    status: str = "error"
    note: str = ""
    inputs: list[int] = field(default_factory=list)
    target: float = 0.0
    share: float = 1.0
    dense: int = 0
    pruned: int = 0
    events: int = 0
    trace_seconds: float = 0.0
    seconds: float = 0.0
    resumed: bool = False
    differing: list[str] = field(default_factory=list)
    units: dict[str, list[int]] = field(default_factory=dict)
    peak_mib: int = 0


def measure(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """The row of one network, as plain types; what goes wrong is written into it and not raised."""
    row, began = Row(name, inputs=[case.batch, *case.shape], target=case.target), time.monotonic()
    spent, trace_step = [], callback.trace_step

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return trace_step(*args, **kwargs)
        finally:
            spent.append(time.process_time() - started)

    try:
        before = {kind: count(case.build()) for kind, count in case.units.items()}
        with mock.patch.object(callback, "trace_step", timed):
            trainer, module, pruning = fit(case, folder / "whole")
        fill(row, case, module.net, pruning, before)
        kept = folder / "kept.pt"
        torch.save(learnt(trainer, module, pruning), kept)
        del trainer, module, pruning
        parts = learnt(*fit(case, folder / "parts", folder / "whole" / f"step={KEPT}.ckpt"))
        row.resumed, row.differing = True, differences(torch.load(kept, weights_only=True), parts)
        row.note = "; ".join(problems(row))
        row.status = "wrong" if row.note else "right"
    except Exception as error:
        row.note = f"{type(error).__name__}: {error}"
    row.trace_seconds = round(sum(spent), 2)
    row.seconds = round(time.monotonic() - began, 1)
    row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return asdict(row)


def fill(row: Row, case: Case, net: nn.Module, pruning: TaylorPruning, before: Mapping[str, int]) -> None:
    """What the fit that nothing interrupted has made of the network."""
    assert pruning.graph is not None
    cost = CostModel(pruning.graph)
    row.share, row.dense, row.pruned = pruning.remaining["flops"], cost.dense.flops, cost.now.flops
    row.events = sum(bool(event["removed"]) for event in pruning.state_dict()["record"]["events"])
    row.units = {kind: [before[kind], count(net)] for kind, count in case.units.items()}
    if not all(bool(t.isfinite().all()) for t in net.state_dict().values()):
        raise ArithmeticError("the weights are not all finite numbers after the fit")


def problems(row: Row) -> Iterable[str]:
    """What of a fit that came to its end is not as promised."""
    if row.share > row.target:
        yield f"{row.share:.3f} of the FLOPs left, {row.target} asked for"
    if row.events != EVENTS:
        yield f"{row.events} events, {EVENTS} planned"
    if row.differing:
        yield f"{len(row.differing)} differ after the resume: {', '.join(row.differing[:3])}"


def measured(name: str, case: Case, *, timeout: float, memory: float) -> dict[str, Any]:
    """One row, made by a forked child that may crash, hang or run out of memory."""
    with tempfile.TemporaryDirectory() as folder:

        def work() -> dict[str, Any]:
            limit_memory(memory)
            return measure(name, case, Path(folder))

        row, status, note = outcome(work, timeout, Path(folder) / "log")
    return row or asdict(Row(name, status, note, seconds=timeout if status == "timeout" else 0.0))


def markdown(rows: Iterable[Row], made: str) -> str:
    """A summary, and a row per network."""
    rows = sorted(rows, key=lambda row: (ORDER.index(row.status), list(CASES).index(row.model)))
    equal = sum(row.resumed and not row.differing for row in rows)
    lines = [
        "## Whole fits",
        "",
        f"{sum(row.status == 'right' for row in rows)} of {len(rows)} right, {equal} resumed bit for bit.",
        "",
        made,
        "",
    ]
    lines += [
        "| network | settings | status | batch | GFLOPs | share | events | trace s | resume | removed |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    said = [f"- **{row.model}** ({row.status}): {' '.join(row.note.split())[:300]}" for row in rows if row.note]
    return "\n".join([*lines, "", *said, ""])


def _line(row: Row) -> str:
    gflops = f"{row.dense / 1e9:.3g} → {row.pruned / 1e9:.3g}" if row.dense else "-"
    resume = "-" if not row.resumed else "not equal" if row.differing else "bit-equal"
    gone = [f"{kind} {a} → {b}" + ("" if b < a else " (stayed)") for kind, (a, b) in row.units.items()]
    case = CASES.get(row.model)
    settings = [case.criterion.__name__, *(f"{k}={v}" for k, v in case.options.items())] if case else []
    cells = (
        row.model,
        ", ".join(settings),
        row.status,
        "x".join(map(str, row.inputs)),
        gflops,
        f"{100 * row.share:.1f} %",
        row.events,
    )
    return "| " + " | ".join(map(str, (*cells, f"{row.trace_seconds:.1f}", resume, ", ".join(gone)))) + " |"


def main() -> None:
    """Fill the store, or make its table."""
    given, chosen = arguments(__doc__, CASES, "end_to_end.jsonl")
    store = Store(given.out, Row)
    if given.table:
        made = f"Measured and written by `tests/campaigns/end_to_end.py`, with {versions(*PACKAGES)}. {REMARK}"
        table = markdown([store.rows[name] for name in chosen if name in store.rows], made)
        write_section(given.write, "end_to_end", table) if given.write else print(table)
        return
    for name in chosen:
        if name not in store.rows:
            row = store.add(measured(name, CASES[name], timeout=given.timeout, memory=given.memory))
            print(_line(row), row.note[:300], f"{row.seconds} s, {row.peak_mib} MiB", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main()
