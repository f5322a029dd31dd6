"""Every table of ``notebooks/speed.md`` that needs a GPU, in ten minutes; each is written as soon as it is there.

    python tests/benchmarks/on_gpu.py [--out folder/] [--seconds 600] [--only event scoring ...] [--device cuda]

The tests that need a GPU come first, then the tables by what they tell. Each has a share of the time; what takes longer
is ended and said to be. Without a GPU nothing is run, but for ``--device cpu``, by which the commands can be tried.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent

LARGE = ["resnet50:256:224", "vgg16:256:224"]

JOBS: dict[str, tuple[float, list[str]]] = {
    "tests": (0.15, ["-m", "pytest", "-q", "-m", "gpu", str(HERE.parent)]),
    "event": (0.06, ["event.py", "--name", "gpu_event"]),
    "scoring": (0.12, ["scoring.py", "--half", "--last", "--name", "gpu_scoring"]),
    "compiled": (0.15, ["scoring.py", "--half", "--last", "--compiled", "--name", "gpu_scoring_compiled"]),
    "fits": (0.16, ["whole_fit.py", "--half", "--last", "--steps", "300", "--name", "gpu_fits", "--nets", *LARGE]),
    "speedup": (0.12, ["speedup.py", "--nets", "resnet50:224", "mobilenet_v2:224", "--name", "gpu_speedup"]),
    "table2": (0.08, ["table2.py", "--batches", "16", "512", "--name", "gpu_table2"]),
    "targets": (0.08, ["targets.py", "--name", "gpu_targets"]),
    "operators": (0.04, ["operators.py", "--name", "gpu_operators"]),
    "blocks": (0.04, ["blocks.py", "--uncompiled", "--name", "gpu_blocks"]),
}
"""Name -> share of the time, and the command."""


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--out", type=Path, default=Path("benchmarks"))
    asked.add_argument("--seconds", type=float, default=600, help="for all of it")
    asked.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    asked.add_argument("--device", default="cuda")
    args = asked.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is here, so nothing was measured; --device cpu tries the commands")
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    ended, share = {}, sum(JOBS[name][0] for name in args.only)
    for name in args.only:
        part, command = JOBS[name]
        began = time.monotonic()
        how = run(command, args.device, args.out, args.out / f"{name}.log", args.seconds * part / share)
        ended[name] = f"{how} after {time.monotonic() - began:.0f} s"
        print(f"{name:10} {ended[name]}", flush=True)
    return int(any(not how.startswith("done") for how in ended.values()))


def run(command: list[str], device: str, out: Path, log: Path, seconds: float) -> str:
    """Run one of them, its output in the log; return how it ended."""
    if command[0] != "-m":
        command = [str(HERE / command[0]), *command[1:], "--device", device, "--out", str(out)]
    with log.open("w") as lines:
        try:
            code = subprocess.run([sys.executable, *command], stdout=lines, stderr=lines, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return "ended"
    return "done" if code == 0 else f"failed ({code}, see {log})"


if __name__ == "__main__":
    sys.exit(main())
