from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch

# Small nets gain nothing from a second thread, and several workers side by side lose by it.
torch.set_num_threads(1)


LONG = ("notebooks", "guides", "campaigns", "torchvision_nets", "own_project", "clip_classifier", "compare_curves")
"""Files of tests that take long: they begin first, so that no worker is still at one when the others are done."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave a quick run one example of each test; the others are slow, and every one runs in CI.

    Which one is drawn by their names: always the same of one test, another of the next, so that a quick run has met the
    whole table of models, too.
    """
    by_test = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("slow"):
            by_test[item.nodeid.partition("[")[0]].append(item)
    for examples in by_test.values():
        for item in sorted(examples, key=lambda item: zlib.crc32(item.nodeid.encode()))[1:]:
            item.add_marker("slow")
            item.add_marker("example")
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(autouse=True)
def _seeded_and_clean() -> Iterator[None]:
    """Every test starts from one seed and must leave the process as it found it."""
    torch.manual_seed(0)
    environment = dict(os.environ)
    yield
    assert torch.get_default_dtype() == torch.float32
    leaked = set(os.environ) - set(environment) - {"PYTEST_CURRENT_TEST"}
    assert not {name for name in leaked if not name.startswith(("TORCH", "PYTORCH_NVML", "KINETO", "TRITON", "KMP"))}, (
        leaked
    )


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Leave the pictures out of each fit's report: to draw them takes longer than the fit itself.

    They are tested in ``tests/report``, and elsewhere by who asks for ``pictures``.
    """
    from lightning_taylor.report import html  # only now: whoever hands out the tests need not import all of it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "figures", lambda summary: {})
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw them after all."""
    from lightning_taylor.report import figures, html

    monkeypatch.setattr(html, "figures", figures.figures)
