"""Fits that are killed at random moments, by signals and exceptions, also inside an event, and resumed.

``python tests/campaigns/kill.py --count 200 --seed 0``
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from fit.resuming import differences

from campaigns.children import start
from campaigns.killed_fit import PARTS, calibrate, check_checkpoint, run
from campaigns.killed_kinds import CONFIGS
from campaigns.strikes import Strike

FAULTS = ("corrupt checkpoint", "wrong shapes", "stuck", "target missed", "internal traceback", "left behind")


@dataclass
class Outcome:
    """What became of one killed fit."""

    strike: Strike
    config: str
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


METHODS = ("SIGKILL", "SIGTERM", "SIGINT", "exception")
PLACES = ("clock", "hook", "surgery", "line", "save", "module", "surgery", "line", "report")


def draw(random_: random.Random, index: int, lines: dict[str, int]) -> Strike:
    """A moment, by one method at one place: both in turn, so that few strikes are of every kind, too."""
    how, where = METHODS[index % len(METHODS)], PLACES[index % len(PLACES)]
    if where in ("save", "report"):
        full = "full disk" if how in ("SIGTERM", "exception") else "SIGKILL"
        return Strike(full, where, count=random_.randrange(1, 6 if where == "save" else 3))
    if where == "module":
        name = random_.choice(Strike.OF_MODULE)
        return Strike(how, where, name, random_.randrange(1, 24 if name in Strike.HOOKS else 4))
    if where == "clock":
        return Strike(how if how != "exception" else "SIGKILL", where, seconds=random_.uniform(0.05, 1.6))
    if where == "hook":
        return Strike(how, where, random_.choice(Strike.HOOKS), random_.randrange(1, 24))
    if where == "surgery":
        return Strike(how, where, random_.choice(Strike.CHANGES), random_.randrange(1, 60))
    part = random_.choice(PARTS)
    return Strike(how, where, part, random_.randrange(1, max(2, lines.get(part, 1))))


def kill_and_resume(strike: Strike, config: str, folder: Path, whole: Any, timeout: float) -> Outcome:
    """One case: a fit that is struck, its checkpoints, and the fit that goes on from the last of them."""
    outcome = Outcome(strike, config)
    child = start(lambda: run(folder, config, strike=strike), folder / "log")
    if strike.where == "clock":
        time.sleep(strike.seconds)
        child.strike(getattr(signal, strike.how))
    how = child.join(timeout)
    if how == "stuck":
        outcome.faults.append("stuck: the killed fit")
        return outcome
    if how == "returned":
        _note(outcome, child.result)
    outcome.notes.append("died" if how == "died" else child.result.get("status", "raised"))
    if strike.how != "SIGKILL" and any(folder.glob(".pruning*")):
        outcome.faults.append("left behind: half a report")
    last = _last_checkpoint(outcome, folder, config)
    if how == "returned" and child.result.get("status") == "finished":  # before the strike
        if not child.result["reached"]:
            outcome.faults.append("target missed: never struck")
        _compare(outcome, folder, whole)
        return outcome
    outcome.notes.append("resumed" if last else "begun anew")
    child = start(lambda: run(folder, config, resume=last), folder / "log")
    how = child.join(timeout)
    if how != "returned":
        outcome.faults.append(f"{'stuck' if how == 'stuck' else 'internal traceback'}: the resumed fit {how}")
        return outcome
    _note(outcome, child.result)
    if not child.result.get("reached"):
        outcome.faults.append(f"target missed: {child.result.get('status')}")
    elif last is None or last.name.startswith(("step", "last")):
        _compare(outcome, folder, whole)
    return outcome


def _note(outcome: Outcome, result: dict[str, Any]) -> None:
    # The clock may strike before the Trainer is there to hear it.
    early = outcome.strike.how == "SIGINT" and result.get("traceback", "").rstrip().endswith("KeyboardInterrupt")
    if "traceback" in result and not early:
        outcome.faults.append(f"internal traceback: {result['traceback'][-1500:]}")
    outcome.faults.extend(result.get("faults", ()))


def _last_checkpoint(outcome: Outcome, folder: Path, config: str) -> Path | None:
    """The newest that can be read; every one that cannot is a fault, every half-written file is noted."""
    if any(p.suffix != ".ckpt" for p in (folder / "checkpoints").glob("*")):
        outcome.notes.append("temporary file of a save left")
    for path in sorted(
        (folder / "checkpoints").glob("*.ckpt"), key=lambda p: (-p.stat().st_mtime, p.name != "last.ckpt")
    ):
        try:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            outcome.faults.append(f"corrupt checkpoint: {path.name}: {error}")
            continue
        outcome.faults.extend(check_checkpoint(checkpoint, config))
    found = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def _compare(outcome: Outcome, folder: Path, whole: Any) -> None:
    mine = torch.load(folder / "kept_0.pt", weights_only=True)
    outcome.notes.append("bitwise" if not differences(whole, mine) else "not bitwise")


def campaign(count: int, seed: int, jobs: int = 2, timeout: float = 120.0) -> list[Outcome]:
    """``count`` killed fits; the same seed draws the same strikes (what the clock hits differs)."""
    random_ = random.Random(seed)
    root = Path(tempfile.mkdtemp(prefix="kill-"))
    names = list(CONFIGS)[: max(1, min(len(CONFIGS), count))]
    whole, lines = {}, {}

    def undisturbed(name: str) -> None:
        folder = root / f"whole {name}"
        folder.mkdir()
        child = start(lambda: calibrate(folder, name), folder / "log")
        assert child.join(timeout) == "returned", (folder / "log").read_text()[-3000:]
        assert child.result.get("status") == "finished", child.result
        lines[name], whole[name] = child.result["lines"], torch.load(folder / "kept_0.pt", weights_only=True)

    def one(item: tuple[int, str, Strike]) -> Outcome:
        index, name, strike = item
        folder = root / str(index)
        folder.mkdir()
        outcome = kill_and_resume(strike, name, folder, whole[name], timeout)
        if outcome.faults:
            print(index, outcome, f"see {folder}", flush=True)
        else:
            shutil.rmtree(folder)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(undisturbed, names))
        turns = [(index, names[index % len(names)]) for index in range(count)]
        drawn = [(index, name, draw(random_, index, lines[name])) for index, name in turns]
        outcomes = list(pool.map(one, drawn))
    if not any(outcome.faults for outcome in outcomes):
        shutil.rmtree(root)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    began = time.monotonic()
    outcomes = campaign(arguments.count, arguments.seed, arguments.jobs)
    print(f"{len(outcomes)} fits in {time.monotonic() - began:.0f} s")
    print("struck by", dict(Counter(f"{o.strike.how} in {o.strike.where}" for o in outcomes)))
    print("notes", dict(Counter(note for o in outcomes for note in o.notes)))
    print({fault: sum(any(f.startswith(fault) for f in o.faults) for o in outcomes) for fault in FAULTS})
    print("configurations with a resume that is not bitwise", {o.config for o in outcomes if "not bitwise" in o.notes})


if __name__ == "__main__":
    main()
