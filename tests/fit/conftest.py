from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightning_taylor.report import page

DRAW = page.figures


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Leave the pictures out of each fit's report: to draw them takes longer than the fit itself.

    They are tested in ``tests/report``, and here by who asks for ``pictures``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figures", lambda summary: {})
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw them after all."""
    monkeypatch.setattr(page, "figures", DRAW)
