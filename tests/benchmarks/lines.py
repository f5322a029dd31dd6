"""Results of long runs as lines of JSON: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def fill(file: Path, jobs: Iterable[dict[str, Any]], run: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Run each job that the file has no line of, add its line at once, and return all lines.

    A job is the arguments of ``run``, by name; its line has them and what ``run`` found. All but the curve is printed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for job in jobs:
        if any(job.items() <= row.items() for row in rows):
            continue
        rows.append(job | run(**job))
        with file.open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps({name: value for name, value in rows[-1].items() if name != "curve"}), flush=True)
    return rows


def methods_and_targets(seeds: Iterable[int], methods: Iterable[str], targets: Iterable[float]) -> list[dict[str, Any]]:
    """Return the jobs of each seed: the dense net once, every other method for each target."""
    each = [("dense", 1.0)] * ("dense" in methods)
    each += [(method, target) for method in methods if method != "dense" for target in targets]
    return [{"seed": seed, "method": method, "target": target} for seed in seeds for method, target in each]


def by_method(rows: Iterable[dict[str, Any]], name: str) -> list[dict[str, str]]:
    """Return a line for each method, with mean and spread of the named figure over the seeds of each target."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["method"]][row["target"]].append(row[name])
    return [
        {"method": method} | {f"{target:.0%}": spread(values) for target, values in sorted(of.items(), reverse=True)}
        for method, of in found.items()
    ]


def spread(values: list[float], digits: int = 1) -> str:
    """Return mean and standard deviation, in words."""
    around = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{around}"
