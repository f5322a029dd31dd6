"""One row per model: a store that can be resumed, the loop that fills it, and the tables made from it.

Used by ``architectures.py`` (torchvision) and ``foreign.py`` (models that nobody here wrote). What ``--write`` puts
into a file stands between two comments with the table's name, so that one file can hold the tables of several commands.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from campaigns.children import outcome
from campaigns.measuring import Example, Row, limit_memory, measure

Zoo = Mapping[str, Callable[[], Example]]
R = TypeVar("R")
HEAD = """# Which network loses what

Every section below is written by the command that it names, from rows that it measured: one network per process, with
random weights and the smallest input that goes through, neither of which changes what belongs together.

- **status**: *right* if some channels can be removed and every removal that was tried is exact; *frozen-only* if none
  can; *refused* by an error that says why; *wrong*, *error* or *timeout* would be a defect.
- **removable**: the share of the output channels of all convolution and linear layers that ran which can be removed.
  Channels that reach the network's output (classes, boxes, flow) are left out of both numbers.
- **inexact**: the same with `allow_inexact_norms`, where that is more; each group is proven by the trace itself.
- **difference**: the largest relative one between the sliced network and the whole one whose consumers ignore the
  removed channels, in double precision where the model allows it, over three removals (25 %, 75 %, another share of
  each group), in evaluation and in training mode.
- **own noise**: what a change of all weights in their last digit makes of the outputs. Of a mode that it turns over
  (detections, ranked by scores that tie) only the other mode is compared.
- **trace s**: seconds of one processor core, the proof included. **MiB**: peak memory of the process.
"""
ORDER = ("wrong", "error", "timeout", "frozen-only", "refused", "right")


class Store(Generic[R]):
    """JSON lines in a file, one per model, of one kind of row; the latest line of a model counts."""

    def __init__(self, path: Path, kind: Callable[..., R]) -> None:
        self.path, self.kind = path, kind
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = {row["model"]: kind(**row) for row in map(json.loads, lines)}

    def add(self, row: Mapping[str, Any]) -> R:
        """Append one row; it is on disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[row["model"]] = self.kind(**row)
        return self.rows[row["model"]]


def campaign(zoo: Zoo, names: Iterable[str], store: Store[Row], *, timeout: float, memory: float) -> None:
    """Measure each model that has no row yet, in a process of its own."""
    for name in names:
        if name in store.rows:
            continue
        row = store.add(measured(name, zoo[name], timeout=timeout, memory=memory))
        share = f"{row.removable / row.channels:6.1%}" if row.channels else "     -"
        worst = max(row.difference.values(), default=0.0)
        print(f"{row.status:11} {name:44} {share} {worst:8.1e} {row.seconds:6.1f} s  {row.note[:110]}", flush=True)


def measured(name: str, build: Callable[[], Example], *, timeout: float, memory: float) -> dict[str, Any]:
    """One row, made by a forked child that may crash, hang or run out of memory."""

    def work() -> dict[str, Any]:
        limit_memory(memory)
        return measure(name, build)

    with tempfile.TemporaryDirectory() as folder:
        row, status, note = outcome(work, timeout, Path(folder) / "log")
    return row or asdict(Row(name, status, note, seconds=timeout if status == "timeout" else 0.0))


def markdown(rows: Iterable[Row], title: str, made: str = "") -> str:
    """The table for the documentation: a summary, a row per model, what holds channels back, what went wrong."""
    rows = sorted(rows, key=lambda row: (ORDER.index(row.status), row.model))
    counted = Counter(row.status for row in rows)
    lines = [f"## {title}", "", ", ".join(f"{counted[s]} {s}" for s in reversed(ORDER) if counted[s]) + ".", ""]
    lines += [made, ""] if made else []
    lines += [
        "| model | status | removable | inexact | channels | groups | trace s | difference | own noise | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        *_reasons(rows),
    ]
    said = [f"- **{row.model}** ({row.status}): {_short(row.note)}" for row in rows if row.note]
    return "\n".join([*lines, "", *(["### In words", "", *said] if said else []), ""])


def _line(row: Row) -> str:
    share = f"{100 * row.removable / row.channels:.1f} %" if row.channels else "-"
    inexact = f"{100 * row.inexact / row.channels:.1f} %" if row.inexact > row.removable else ""
    worst = f"{max(row.difference.values()):.0e}" if row.difference else "-"
    worst += f" ({row.precision})" if row.precision not in ("", "float64") else ""
    drift = f"{max(row.drift.values()):.0e}" if row.drift else "-"
    cells = (row.model, row.status, share, inexact, row.channels or "-", row.groups, f"{row.trace_seconds:.1f}")
    return "| " + " | ".join(map(str, (*cells, worst, drift, row.peak_mib or "-"))) + " |"


def _reasons(rows: list[Row]) -> list[str]:
    """What keeps channels from being removed, over all models, the costliest first."""
    models: dict[str, list[str]] = defaultdict(list)
    channels: Counter[str] = Counter()
    for row in rows:
        for reason, n in row.reasons.items():
            models[reason].append(row.model)
            channels[reason] += n
    total = sum(row.channels for row in rows)
    head = ["### What stays", "", f"Of {total} channels, {sum(row.removable for row in rows)} are removable.", ""]
    head += ["| reason | channels | share | models | for example |", "|---|---|---|---|---|"]
    return head + [
        f"| {_cell(reason)} | {n} | {100 * n / total:.1f} % | {len(models[reason])} | {', '.join(models[reason][:3])} |"
        for reason, n in channels.most_common()
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _short(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:300]


def arguments(
    description: str | None, zoo: Iterable[str], out: str, **files: Path
) -> tuple[argparse.Namespace, list[str]]:
    """The command line that the campaigns share, with further files to read, and the chosen models."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", nargs="*", default=["*"], help="name patterns")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / out, help="store, resumed if there")
    parser.add_argument("--timeout", type=float, default=300, help="seconds per model")
    parser.add_argument("--memory", type=float, default=14, help="GiB per model")
    parser.add_argument("--table", action="store_true", help="print the store as Markdown and measure nothing")
    parser.add_argument("--write", type=Path, help="with --table: put it into this file, in place of its older self")
    for name, default in files.items():
        parser.add_argument(f"--{name}", type=Path, default=default, help="store to read")
    given = parser.parse_args()
    chosen = [name for name in zoo if any(fnmatchcase(name, pattern) for pattern in given.models)]
    if not chosen:
        sys.exit(f"no model matches {given.models}")
    return given, chosen


def write_section(path: Path, name: str, text: str) -> None:
    """Put a section into a Markdown file: in the place of its older self, or at the end."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{start}\n\n{text.strip()}\n\n{end}\n"
    whole = path.read_text() if path.exists() else HEAD
    if start not in whole:
        path.write_text(f"{whole}\n{section}")
        return
    before, _, rest = whole.partition(start)
    path.write_text(before + section + rest.partition(end)[2].removeprefix("\n"))


def versions(*packages: str) -> str:
    """The installed versions, for a sentence."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


def main(description: str | None, zoo: Zoo, title: str, out: str, packages: tuple[str, ...], remark: str = "") -> None:
    """Run a campaign, or print its table."""
    given, chosen = arguments(description, zoo, out)
    store = Store(given.out, Row)
    if not given.table:
        campaign(zoo, chosen, store, timeout=given.timeout, memory=given.memory)
        return
    script = Path(sys.argv[0]).name
    made = f"Measured and written by `tests/campaigns/{script}`, with {versions(*packages)}.{remark}"
    rows = [store.rows[name] for name in chosen if name in store.rows]
    made += f" {len(rows)} of the {len(zoo)} networks that it can build." if len(rows) < len(zoo) else ""
    table = markdown(rows, title, made)
    if given.write:
        write_section(given.write, script.removesuffix(".py"), table)
    else:
        print(table)
