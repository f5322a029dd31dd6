"""``lightning-taylor compare``: from checkpoints and a configuration to the table."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest

from lightning_taylor.cli.main import main
from lightning_taylor.recipes.classifier import ImageClassifier
from lightning_taylor.recipes.digits import Digits

CONFIG = """\
model:
  class_path: lightning_taylor.recipes.classifier.ImageClassifier
  init_args: {model: digits_cnn}
data:
  class_path: lightning_taylor.recipes.digits.Digits
"""

pytestmark = [
    pytest.mark.skipif(
        any(find_spec(extra) is None for extra in ("jsonargparse", "docstring_parser", "sklearn", "matplotlib")),
        reason="needs the extras cli, recipes and plots",
    ),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints of a small fit, and its configuration."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.yaml").write_text(CONFIG)
    for seed in (0, 1):
        L.seed_everything(seed, verbose=False)
        trainer = L.Trainer(
            max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(ImageClassifier(num_classes=10), Digits())
        trainer.save_checkpoint(folder / f"seed{seed}.ckpt")
    return folder


def compare(trained: Path, out: Path, *options: str) -> None:
    checkpoints = [str(trained / f"seed{seed}.ckpt") for seed in (0, 1)]
    few = ["--examples", "24", "--batch-size", "8", "--fraction", "0.01", "--resamples", "3", "--out", str(out)]
    main(["compare", *checkpoints, "--model", str(trained / "config.yaml"), *few, *options])


@pytest.mark.slow
def test_the_table_is_shown_and_kept(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(trained, tmp_path, "--layers")
    shown = capsys.readouterr().out
    assert "2 seeds" in shown
    assert "within each group" in shown
    assert all(name in shown for name in ("TaylorBatch", "OBD", "APoZ", "Random"))
    kept = {file.name for file in tmp_path.iterdir()}
    assert kept == {"correlation.json", "correlation.png", "oracle_seed0_0.pt", "oracle_seed1_1.pt"}
    table = json.loads((tmp_path / "correlation.json").read_text())
    assert table["seeds"] == 2
    # The digits' net has five groups, of which the oracle takes at least eight channels each.
    assert table["channels"] == 8 * table["groups"]


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(trained, tmp_path, "--json", "--criteria", "Taylor", "Random")
    first = json.loads(capsys.readouterr().out)
    assert list(first["layers"]) == list(first["cells"])
    assert set(first["cells"]) == {"Taylor", "Random"}
    written = (tmp_path / "oracle_seed0_0.pt").stat().st_mtime_ns
    compare(trained, tmp_path, "--json", "--criteria", "Taylor", "Random")
    assert json.loads(capsys.readouterr().out) == first
    assert (tmp_path / "oracle_seed0_0.pt").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criteria", "Tailor"], "did you mean"),
        (["--fraction", "2"], "expected a share in (0, 1], got '2'"),
        (["--model", "lightning_taylor.recipes.classifier.ImageClassifier"], "give --config the YAML of the fit"),
    ],
)
def test_a_mistake_is_answered_in_a_line(
    options: list[str], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if options[0] == "--model":
        options = [*options, "--input-shape", "1", "1", "8", "8"]
    with pytest.raises(SystemExit) as stopped:
        compare(trained, tmp_path, *options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
