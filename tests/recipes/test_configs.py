"""Every configuration that ships must build what it names, whatever becomes of the classes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("jsonargparse", reason="needs the extra cli")

from lightning_taylor import TaylorPruning, cli
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.recipes.classifier import ImageClassifier
from lightning_taylor.recipes.clip_classifier import ClipClassifier
from lightning_taylor.recipes.data import ImageData

# Lightning 2.6 calls what the newest jsonargparse is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


class Built(cli.TaylorCLI):
    """Stops short of running."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.ran = subcommand


@pytest.fixture(autouse=True)
def _undo_the_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """seed_everything leaves variables in the environment."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("subcommand", ["fit", "test"])
@pytest.mark.parametrize("name", cli.shipped_configs())
def test_a_shipped_configuration_builds_model_data_and_pruning(name: str, subcommand: str) -> None:
    built = Built([subcommand, "--config", str(cli.shipped_configs()[name])])
    assert isinstance(built.model, ImageClassifier | ClipClassifier)
    assert isinstance(built.datamodule, ImageData)
    callbacks: list[object] = vars(built.trainer)["callbacks"]
    assert [type(c) for c in callbacks if "lightning_taylor" in type(c).__module__] == [TaylorPruning]


@pytest.mark.parametrize("name", ["digits", "flowers12"])
def test_a_shipped_configuration_leaves_time_to_measure_before_and_to_fine_tune_after(name: str) -> None:
    built = Built(["fit", "--config", str(cli.shipped_configs()[name])])
    (pruning,) = (c for c in vars(built.trainer)["callbacks"] if isinstance(c, TaylorPruning))
    trainer = built.config["fit"]["trainer"]
    steps_an_epoch = trainer["log_every_n_steps"]
    steps = steps_an_epoch * trainer["max_epochs"]
    assert pruning.schedule is not None
    events = pruning.schedule.in_steps(FitLength(steps, trainer["max_epochs"])).events(steps)
    assert events[0] >= 5 * steps_an_epoch
    assert events[-1] <= 2 / 3 * steps
