"""The bars, the model summaries and the table at the end, as they stand on the screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import rich
import zoo
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary, RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.model_summary.model_summary import summarize

from fit.boring import Boring
from fit.harness import fit, pruning
from lightning_taylor import Gradual, OneShot, TaylorPruning

EVENTS = Gradual(every_n_steps=3, start_step=9, end_step=18)


@pytest.fixture
def terminal() -> Iterator[dict[str, Any]]:
    """What a rich bar needs to take the captured output for a terminal; its settings are global."""
    yield {"force_terminal": True, "force_interactive": True, "width": 120, "color_system": None}
    rich.reconfigure()


def plain(text: str) -> str:
    """Without what moves the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


class Shown(L.Callback):
    """Notes after every batch what the bar shows, and what it should."""

    def __init__(self, pruner: TaylorPruning) -> None:
        self.pruner, self.seen = pruner, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        bar = trainer.progress_bar_callback
        assert bar is not None
        metrics = bar.get_metrics(trainer, trainer.lightning_module)
        self.seen.append((metrics["pruning/flops"], self.pruner.remaining["flops"]))


@pytest.mark.parametrize("first", [False, True])
def test_a_rich_bar_comes_to_rest_above_the_table(
    first: bool, terminal: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar, pruner = RichProgressBar(console_kwargs=terminal), pruning(schedule=EVENTS)
    fit(Boring(zoo.Residual()), pruner, tmp_path, others=[bar], first=first, enable_progress_bar=True)
    out = plain(capsys.readouterr().out)
    before, after = out.split("Target met after 3 events")
    (_, last) = before.rsplit("Epoch 2/2", 1)
    assert f"pruning/flops: {pruner.remaining['flops']:.3f}" in last
    assert "8/8" in last
    assert "Epoch" not in after
    assert "pruning.json" in after


def test_a_tqdm_bar_ends_with_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruner = pruning(schedule=EVENTS)
    fit(Boring(zoo.Residual()), pruner, tmp_path, others=[TQDMProgressBar()], enable_progress_bar=True)
    captured = capsys.readouterr()
    bars = [part for part in re.split(r"[\r\n]", captured.out + captured.err) if part.startswith("Epoch 2")]
    assert f"pruning/flops={pruner.remaining['flops']:.3f}" in bars[-1]
    assert captured.out.index("Target met") > captured.out.rfind("Epoch 2")


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_the_bar_shows_an_event_in_the_batch_that_it_ends(bar: Any, tmp_path: Path) -> None:
    pruner = pruning(schedule=EVENTS)
    shown = Shown(pruner)
    fit(Boring(zoo.Residual()), pruner, tmp_path, others=[shown, bar()], enable_progress_bar=True)
    assert [figure for figure, _ in shown.seen] == pytest.approx([left for _, left in shown.seen], abs=5e-4)
    assert len({left for _, left in shown.seen}) == 4  # dense, and after each event
    rich.reconfigure()


def test_metrics_of_the_users_with_the_same_names_keep_their_values(tmp_path: Path) -> None:
    class Logging(Boring):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_dict({"flops": 123.0, "params": 7.0, "channels": 5.0}, prog_bar=True)
            return super().training_step(batch, batch_idx)

    pruner = pruning(schedule=EVENTS)
    run = fit(Logging(zoo.Residual()), pruner, tmp_path)
    names = {"flops": 123.0, "params": 7.0, "channels": 5.0}
    assert {name: run.callback_metrics[name].item() for name in names} == names
    assert {name: run.progress_bar_metrics[name] for name in names} == names
    assert run.progress_bar_metrics["pruning/flops"] == pytest.approx(pruner.remaining["flops"])


def test_an_event_says_nothing_between_two_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Listening(L.Callback):
        def on_train_end(self, *_: Any) -> None:
            self.heard = capsys.readouterr()

    listening = Listening()
    fit(Boring(zoo.Residual()), pruning(schedule=EVENTS), tmp_path, others=[listening])
    assert listening.heard.out == ""
    assert "prun" not in listening.heard.err.lower()


@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_the_model_summary_is_shown_again_with_the_sizes_that_are_left(
    kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    module, dense = Boring(zoo.Residual()), summarize(Boring(zoo.Residual())).total_parameters
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(module, pruning(schedule=EVENTS), tmp_path, others=[kind(max_depth=2)], enable_model_summary=True)
    out = capsys.readouterr().out if kind is RichModelSummary else caplog.text
    totals = [
        float(found)
        for found in re.findall(r"([\d.]+) +K +Total params|Total params: ([\d.]+) K", out)
        for found in found
        if found
    ]
    pruned = sum(p.numel() for p in module.parameters())
    assert totals == pytest.approx([dense / 1e3, pruned / 1e3], abs=0.06)
    assert summarize(module).total_parameters == pruned < dense


def test_a_fit_that_removed_nothing_shows_its_sizes_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pruner, module = pruning(schedule=OneShot(5)), Boring(zoo.Residual())
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(module, pruner, tmp_path, others=[ModelSummary()], enable_model_summary=True)
        assert caplog.text.count("Total params") == 2
        fit(module, pruner, tmp_path, others=[ModelSummary()], enable_model_summary=True)
    assert caplog.text.count("Total params") == 3


def test_a_model_summary_that_raises_costs_a_warning(tmp_path: Path) -> None:
    class Once(ModelSummary):
        shown = 0

        def on_fit_start(self, *_: Any) -> None:
            self.shown += 1
            if self.shown > 1:
                raise RuntimeError("no screen")

    pruner = pruning(schedule=EVENTS)
    with pytest.warns(UserWarning, match="Once could not show the pruned model: RuntimeError: no screen"):
        fit(Boring(zoo.Residual()), pruner, tmp_path, others=[Once()], enable_model_summary=True)
    assert (tmp_path / "pruning.json").exists()
