"""Other people's projects with the callback added as their users would, and nothing else changed: do they land?

``uv run --with timm --with segmentation-models-pytorch --with transformers --with monai --with lightly --with torchgeo
--with anomalib --with ultralytics --with pytorch-metric-learning --with kornia --with pytorch-tcn --with hydra-core
--with pycocotools
python tests/campaigns/projects.py [--models 'timm/*' ...] [--out FILE] [--timeout S] [--table [--write FILE]]``

Nothing is downloaded: all weights and data are random. The environment of the project stays as it is.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from campaigns import projects_lightning, projects_others, projects_vision
from campaigns.children import outcome
from campaigns.measuring import limit_memory
from campaigns.project_fit import Project, Row, measure
from campaigns.table import Store, arguments, versions, write_section

ORDER = ("crashed", "short", "timeout", "refused", "landed")


def zoo() -> Mapping[str, Project]:
    """Library and project -> what its user would have written."""
    return {**projects_lightning.PROJECTS, **projects_vision.PROJECTS, **projects_others.PROJECTS}


def measured(name: str, project: Project, *, timeout: float, memory: float) -> dict[str, Any]:
    """One row, made by a forked child that may crash, hang or run out of memory."""
    package = version(project.package or "lightning")

    def work(folder: str) -> dict[str, Any]:
        limit_memory(memory)
        return measure(name, project, Path(folder), package)

    with tempfile.TemporaryDirectory() as folder:
        row, status, note = outcome(lambda: work(folder), timeout, Path(folder) / "log")
    return row or asdict(Row(name, package, "timeout" if status == "timeout" else "crashed", note, project.know))


def markdown(rows: list[Row]) -> str:
    """The table for the documentation: a row per project, and what went wrong or was refused in words."""
    rows = sorted(rows, key=lambda row: (ORDER.index(row.status), row.model))
    counted = Counter(row.status for row in rows)
    head = ", ".join(f"{counted[status]} {status}" for status in reversed(ORDER) if counted[status])
    made = f"Measured and written by `tests/campaigns/projects.py`, with {versions('torch', 'lightning')}."
    lines = [
        "## Other people's projects",
        "",
        f"{len(rows)} of the {len(zoo())} projects that it can build: {head}.",
        "",
        f"{made} `TaylorPruning(target=...)` is added to the Trainer's callbacks, and nothing else is changed; small "
        "variants, random data, 15 steps. *removable*: share of the channels, those of the outputs left out. *after*: "
        "another step without the callback. *resumed*: from the checkpoints of the first and the second of three "
        "epochs, bit for bit; *as its own* where the project is not bit-equal by itself.",
        "",
        "| project | version | status | removable | FLOPs | trace s | after | validate | resumed | loaded | to know |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    said = [f"- **{row.model}** ({row.status}): {' '.join(row.note.split())[:400]}" for row in rows if row.note]
    return "\n".join([*lines, *(["", "### In words", "", *said] if said else []), ""])


def _line(row: Row) -> str:
    fitted = row.status in ("landed", "short")
    sizes = (f"{row.removable:.1%}", f"{row.achieved:.1%}", f"{row.trace_seconds:.1f}") if fitted else ("-", "-", "-")
    cells = (row.model, row.version, row.status, *sizes, row.after, row.validated, row.resumed, row.loaded, row.know)
    return "| " + " | ".join(" ".join(cell.split())[:120].replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Run the campaign, or print its table."""
    projects = zoo()
    given, chosen = arguments(__doc__, projects, "projects.jsonl")
    store = Store(given.out, Row)
    for name in chosen if not given.table else ():
        if name in store.rows:
            continue
        row = store.add(measured(name, projects[name], timeout=given.timeout, memory=given.memory))
        more = f"after {row.after} | validate {row.validated} | resumed {row.resumed} | loaded {row.loaded}"
        shares = f"{row.removable:6.1%} {row.achieved:6.1%} trace {row.trace_seconds:5.1f} s, {row.seconds:5.1f} s"
        print(f"{row.status:8} {name:36} {shares} | {more} | {row.note[:300]}", flush=True)
    if given.table:
        table = markdown([store.rows[name] for name in chosen if name in store.rows])
        if given.write:
            write_section(given.write, "projects", table)
        else:
            print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
