"""Wrong configurations, models, checkpoints and decisions: each must end in words that name the thing, or work.

``python tests/campaigns/bad_inputs.py`` prints one line per case; ``--only TEXT`` picks cases by name.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from lightning.fabric.utilities.exceptions import MisconfigurationException

from campaigns import bad_arguments, bad_checkpoints, bad_fits, bad_models, bad_removals
from campaigns.cases import Case, Evidence
from lightning_taylor import PruningError

CASES: list[Case] = [
    *bad_arguments.CASES,
    *bad_models.CASES,
    *bad_fits.CASES,
    *bad_removals.CASES,
    *bad_checkpoints.CASES,
]
TYPED = (PruningError, ValueError, TypeError, MisconfigurationException)


def judge(case: Case) -> str:
    """``clear``, ``works``, or ``BAD`` and why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = case.model() if case.model else None
        except Exception as error:
            return f"BAD: the case itself cannot be built: {error!r}"
        evidence = Evidence(model)
        try:
            case.act(model)
        except Exception as error:
            said = _judge_error(case, error)
        else:
            said = "works" if case.says is None else "BAD: no error"
        changed = evidence.changed(hooks_only=case.changes, buffers=case.buffers)
    return f"BAD: {changed}, after: {said}" if changed else said


def _judge_error(case: Case, error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    told = f"{type(error).__name__}: {str(error)[:300]} [{Path(where.filename).name}:{where.lineno}]"
    if case.says is None:
        return f"BAD: should work: {told}"
    if not isinstance(error, (*TYPED, *case.also)):
        return f"BAD: untyped {told}"
    if not re.search(case.says, str(error), re.DOTALL):
        return f"BAD: does not say {case.says!r}: {told}"
    return "clear"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--quiet", action="store_true", help="print what is BAD only")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for case in CASES:
        if arguments.only in case.name:
            began = time.monotonic()
            said = judge(case)
            counts[said[:5].rstrip(":").split(":")[0]] += 1
            if not arguments.quiet or said.startswith("BAD"):
                print(f"{case.name} ({time.monotonic() - began:.1f} s): {said}", flush=True)
    print(sum(counts.values()), "cases:", dict(counts))


if __name__ == "__main__":
    main()
