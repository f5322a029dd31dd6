"""Command lines run in this process, and the checkpoint of a fit that pruned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")

from lightning_taylor import cli
from lightning_taylor.recipes.models import DigitsCNN

Run = Callable[..., tuple[int, str, str]]
FIT = (
    "fit", "--config=digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=6",
    "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu", "--trainer.callbacks.schedule=null",
    "--trainer.callbacks.measure_latency=false", "--trainer.enable_progress_bar=false",
)  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Gives the exit code, stdout and stderr of a command line."""

    def lightning_taylor(*args: object) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return lightning_taylor


@pytest.fixture(scope="module")
def narrow_digits() -> Iterator[None]:
    """Make the digits' network a third as wide, for who trains it many times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DigitsCNN.__init__, "__defaults__", (1, 16))
        yield


@pytest.fixture(scope="session")
def pruned_fit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the main job, cut short; its config.yaml lies two folders up."""
    folder, here, environment = tmp_path_factory.mktemp("fit"), Path.cwd(), dict(os.environ)
    os.chdir(folder)
    try:
        cli.main(FIT)
    finally:
        os.chdir(here)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
    (checkpoint,) = folder.rglob("*.ckpt")
    return checkpoint


@pytest.fixture
def silent_fit(pruned_fit: Path, tmp_path: Path) -> Path:
    """The same as an older release wrote it: it does not say what the model was called with. A config.yaml is near."""
    content = torch.load(pruned_fit, weights_only=True)
    del content["callbacks"]["TaylorPruning"]["report"]["called_with"]
    path = tmp_path / "version_0" / "checkpoints" / "net.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    shutil.copy(pruned_fit.parent.parent / "config.yaml", path.parent.parent)
    return path
