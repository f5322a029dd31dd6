from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Small nets gain nothing from a second thread, and several workers side by side lose by it.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded_and_clean() -> Iterator[None]:
    """Every test starts from one seed and must leave the process as it found it."""
    torch.manual_seed(0)
    environment = dict(os.environ)
    yield
    assert torch.get_default_dtype() == torch.float32
    leaked = set(os.environ) - set(environment) - {"PYTEST_CURRENT_TEST"}
    assert not {name for name in leaked if not name.startswith(("TORCH", "KINETO", "TRITON", "KMP"))}, leaked
