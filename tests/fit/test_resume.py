"""Killed after any step and resumed from the unpruned definition, a fit ends bit for bit as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest

from fit.resuming import KINDS, KilledError, differences, kept, run

# Killed at the end of the epoch before its averaging starts, SWA does not resume alike, with or without pruning.
CASES = [(kind, kill) for kind in KINDS for kill in (1, 3, 4, 6, 8) if (kind, kill) != ("swa", 8)]


@pytest.mark.parametrize(("kind", "kill"), CASES)
def test_resume_equals_uninterrupted(kind: str, kill: int, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    run(whole, kind)
    with pytest.raises(KilledError):
        run(parts, kind, kill=kill)
    run(parts, kind, resume=parts / "kill.ckpt")
    assert differences(kept(whole), kept(parts)) == []
