"""What four real loggers hold after a fit, each asked in its own store; all four at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import zoo
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from fit import stores
from fit.boring import Boring, Validated, loader
from fit.harness import fit, pruning
from fit.rank_launch import all_well, on_ranks
from fit.stores import Stored
from lightning_taylor import Gradual, Guard, OneShot, TaylorPruning
from lightning_taylor.fit.logging import plain_settings, report_folder

EVENTS = Gradual(every_n_steps=3, start_step=9, end_step=18)  # at steps 12, 15, 18, the first of which is number 1
STORES = ("tensorboard", "csv", "wandb", "mlflow")
LIBRARY = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
LAYER = "net.one.0"
SETTINGS = {
    "TaylorPruning/target/flops": "0.5",
    "TaylorPruning/schedule/class": "Gradual",
    "TaylorPruning/schedule/end_step": "18",
    "TaylorPruning/criterion/class": "TaylorBatch",
    "TaylorPruning/criterion/momentum": "None",
    "TaylorPruning/round_to": "1",
    "TaylorPruning/guard": "None",
}


class Saving(Validated):
    """Has hyperparameters of its own, which Lightning logs."""

    def __init__(self, width: int = 7) -> None:
        super().__init__(zoo.Residual())
        self.save_hyperparameters()


class Sizes(L.Callback):
    """Notes at every step what the network is then; behind the pruner, so after an event."""

    def __init__(self, pruner: TaylorPruning) -> None:
        self.pruner, self.seen = pruner, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        width = pl_module.get_submodule(LAYER).weight.shape[0]
        self.seen.append({**self.pruner.remaining, f"width/{LAYER}": width})


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """Some of the libraries leave variables behind, which this takes away again."""
    before = dict(os.environ)
    os.environ["WANDB_SILENT"] = "true"
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def logged(
    environment: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Stored], list[dict[str, float]]]:
    """The stores of four loggers after one fit, and the network's sizes at its steps."""
    for library in LIBRARY.values():
        pytest.importorskip(library, reason=f"the logger needs {library}: pip install 'lightning-taylor[loggers]'")
    folder = tmp_path_factory.mktemp("logged")
    uri, artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
    (folder / "wandb").mkdir()
    pruner = pruning(schedule=EVENTS, cost_power=0.0)  # then each of the three events has something to remove
    sizes = Sizes(pruner)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loggers = [
            TensorBoardLogger(folder / "tensorboard"),
            CSVLogger(folder / "csv"),
            WandbLogger(save_dir=folder / "wandb", offline=True),
            MLFlowLogger(tracking_uri=uri, artifact_location=artifacts),
        ]
        options: Any = {"log_every_n_steps": 1, "logger": loggers, "others": [sizes]}
        fit(Saving(), pruner, folder, loader(), loader(seed=1), **options)
        loggers[2].experiment.finish()
    assert [str(w.message) for w in said if "pruning" in str(w.message).lower()] == []
    found = {
        "tensorboard": stores.tensorboard(Path(loggers[0].log_dir)),
        "csv": stores.comma_separated(Path(loggers[1].log_dir)),
        "wandb": stores.weights_and_biases(folder / "wandb"),
        "mlflow": stores.mlflow(uri),
    }
    return found, sizes.seen


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_the_value_at_a_step_is_the_network_at_that_step(logged: Any, store: str) -> None:
    scalars, sizes = logged[0][store].scalars, logged[1]
    for name in ("flops", "params", "channels"):
        points = scalars[f"pruning/{name}"]
        assert {step for step, _ in points} == set(range(24))
        after_step = [(step, value) for step, value in points[1:]]  # the first is that of the start
        assert all(value == pytest.approx(sizes[step][name], rel=1e-6) for step, value in after_step)
    assert scalars[f"pruning_width/{LAYER}"] == [(0, 6), *((k, sizes[k][f"width/{LAYER}"]) for k in (11, 14, 17))]
    assert scalars[f"pruning_width/{LAYER}"][-1][1] < 6


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_every_event_tells_what_went_how_long_it_took_and_how_the_scores_were_spread(logged: Any, store: str) -> None:
    scalars = logged[0][store].scalars
    steps = {name: [step for step, _ in points] for name, points in scalars.items()}
    spread = [f"pruning_score/{name}" for name in ("min", "p05", "p25", "median", "p75", "p95", "max")]
    for name in ("pruning_event/removed", "pruning_event/seconds", *spread):
        assert steps[name] == [11, 14, 17]
    assert sum(value for _, value in scalars["pruning_event/removed"]) == 36 - round(logged[1][-1]["channels"] * 36)
    assert all(0 < value < 60 for _, value in scalars["pruning_event/seconds"])
    for values in zip(*([value for _, value in scalars[name]] for name in spread), strict=True):
        assert list(values) == sorted(values)
        assert 0 <= values[0] < values[-1] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_the_settings_stand_among_the_hyperparameters_beside_the_users(logged: Any, store: str) -> None:
    settings = logged[0][store].settings
    assert {name: settings.get(name) for name in SETTINGS} == SETTINGS
    assert settings["width"] == "7"


@pytest.mark.slow
@pytest.mark.parametrize("store", ["tensorboard", "wandb"])
def test_the_scores_of_each_group_are_a_histogram_at_each_event(logged: Any, store: str) -> None:
    histograms = logged[0][store].histograms
    assert histograms[f"pruning_scores/{LAYER}"] == [11, 14, 17]
    assert len([name for name in histograms if name.startswith("pruning_scores/")]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("store", ["tensorboard", "wandb", "mlflow"])
def test_pictures_are_shown_where_a_logger_can(logged: Any, store: str) -> None:
    pytest.importorskip("matplotlib", reason="it draws them: pip install 'lightning-taylor[plots]'")
    names = {f"pruning/figures/{name}" for name in ("channels", "scores", "accuracy", "timeline")}
    assert names <= logged[0][store].figures


@pytest.mark.slow
def test_the_tables_are_tables_or_a_text_that_holds_them(logged: Any) -> None:
    found = logged[0]
    for store in ("wandb", "mlflow"):
        tables = found[store].tables
        width = int(logged[1][-1][f"width/{LAYER}"])
        assert [LAYER, 6, width] in tables["pruning/tables/layers"]
        assert len(tables["pruning/tables/events"]) == 3
        (reason,) = (reason for _, reason in tables["pruning/tables/frozen"])
        assert reason.startswith("normalised or ordered along the channels by _log_softmax")
    for store in ("tensorboard", "mlflow"):
        assert "Target met after 3 events" in found[store].texts["pruning/summary"]


@pytest.mark.slow
def test_the_report_is_in_the_log_directory_and_wherever_files_are_kept(logged: Any) -> None:
    report = {"pruning.json", "pruning.html"}
    assert report <= logged[0]["tensorboard"].files  # the first logger's folder is the run's
    assert report <= logged[0]["wandb"].files
    assert report <= logged[0]["mlflow"].files
    assert "<html" in logged[0]["wandb"].texts["pruning/report"].lower()


@pytest.mark.slow
def test_the_default_logger_and_a_module_without_hyperparameters(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="without it Lightning's default is the CSVLogger")
    run = fit(Validated(zoo.Residual()), pruning(schedule=EVENTS), tmp_path, loader(), loader(), logger=True)
    found = stores.tensorboard(Path(str(run.log_dir)))
    assert found.settings.items() >= SETTINGS.items()
    assert {"hparams.yaml", "pruning.json", "pruning.html"} <= found.files
    yaml = stores.yaml.safe_load((Path(str(run.log_dir)) / "hparams.yaml").read_text())
    assert stores.flat(yaml).items() >= SETTINGS.items()
    # Every event is there, though Lightning itself logs every 50 steps.
    assert [step for step, _ in found.scalars["pruning/flops"]][:4] == [0, 11, 14, 17]


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
def test_hyperparameters_that_the_user_logs_by_hand_keep_their_place(hook: str, tmp_path: Path) -> None:
    """TensorBoard shows the first ones only."""
    pytest.importorskip("tensorboard", reason="this is about TensorBoard")

    def log(self: Any) -> None:
        self.logger.log_hyperparams({"mine": 3}, {"score": 0.0})

    module = type("ByHand", (Validated,), {hook: log})(zoo.Residual())
    logger = TensorBoardLogger(tmp_path)
    fit(module, pruning(schedule=EVENTS), tmp_path, loader(), loader(), logger=logger)
    assert stores.tensorboard(Path(logger.log_dir)).settings == {"mine": "3"}


def test_who_switched_the_logging_of_hyperparameters_off_gets_none(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(Saving(), pruning(), tmp_path, loader(), loader(), logger=logger, enable_autolog_hparams=False)
    assert stores.comma_separated(Path(logger.log_dir)).settings == {}


class Own(Logger):
    """A user's logger, of nothing but what Lightning asks for; raises what it is told to."""

    name, version = "own", 3  # type: ignore[assignment]

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.fails, self.seen = fails, []  # type: ignore[var-annotated]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.seen.append((step, metrics))
        if self.fails in metrics:
            raise ConnectionError("no route to host")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.seen.append((None, params))
        if self.fails in params:
            raise ConnectionError("no route to host")


@pytest.mark.parametrize(
    ("fails", "what"), [("pruning_event/seconds", "the scalars"), ("TaylorPruning", "the settings")]
)
def test_a_logger_that_raises_costs_a_warning_and_neither_the_fit_nor_the_others(
    fails: str, what: str, tmp_path: Path
) -> None:
    broken, whole, pruner = Own(fails), Own(), pruning(schedule=EVENTS)
    with pytest.warns(UserWarning, match=f"Own did not take {what} of TaylorPruning: ConnectionError: no route"):
        fit(Validated(zoo.Residual()), pruner, tmp_path, loader(), loader(), logger=[broken, whole])
    assert pruner.reached
    assert [step for step, row in whole.seen if "pruning_event/seconds" in row] == [11, 14, 17]
    assert any("TaylorPruning" in row for _, row in whole.seen)


@pytest.mark.parametrize(
    ("make", "folder"),
    [
        (lambda tmp: CSVLogger(tmp, name="a", version=2), "a/version_2"),
        (lambda tmp: Own(), "own/version_3"),
        (lambda tmp: False, "."),
    ],
    ids=["with a log_dir", "without", "no logger"],
)
def test_the_report_lies_beside_the_checkpoints(make: Callable[[Path], Any], folder: str, tmp_path: Path) -> None:
    run = fit(Boring(zoo.Residual()), pruning(), tmp_path, logger=make(tmp_path), enable_checkpointing=True)
    assert report_folder(run) == tmp_path / folder
    assert {"pruning.json", "pruning.html", "checkpoints"} <= {path.name for path in (tmp_path / folder).iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda tmp: False, lambda tmp: Own()], ids=["no logger", "a fixed version"])
def test_a_second_fit_in_the_same_folder_keeps_the_report_of_the_first(
    make: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (3, 5):
        run = fit(Boring(zoo.Residual()), pruning(schedule=OneShot(step)), tmp_path, logger=make(tmp_path))
    folder = report_folder(run)
    steps = {path.name: json.loads(path.read_text())["events"][0]["step"] for path in folder.glob("*.json")}
    assert steps == {"pruning.json": 3, "pruning-v1.json": 5}
    assert {path.name for path in folder.glob("*.html")} == {"pruning.html", "pruning-v1.html"}
    assert f"As a page: {folder / 'pruning-v1.html'}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_logger_of_pytorch_lightning_is_told_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="this is about TensorBoard")
    others = pytest.importorskip("pytorch_lightning.loggers", reason="the other name of Lightning")
    logger = others.TensorBoardLogger(tmp_path)
    fit(Saving(), pruning(schedule=EVENTS), tmp_path, loader(), loader(), logger=logger)
    found = stores.tensorboard(Path(logger.log_dir))
    assert found.settings.items() >= {**SETTINGS, "width": "7"}.items()
    assert [step for step, _ in found.scalars["pruning_event/removed"]] == [11, 14, 17]
    assert "pruning/figures/channels" in found.figures


class Falling(Validated):
    """Too bad after its first event, which a guard takes back."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", [0.9, 0.1, 0.9][self.current_epoch])


def test_going_back_to_an_earlier_size_is_logged_as_well(tmp_path: Path) -> None:
    logger, pruner = Own(), pruning(schedule=EVENTS, guard=Guard("val_acc", max_drop=0.1, action="rollback"))
    with (
        pytest.warns(UserWarning, match="went back to the last good size"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        fit(Falling(zoo.Residual()), pruner, tmp_path, loader(), loader(), logger=logger)
    widths = [(step, row[f"pruning_width/{LAYER}"]) for step, row in logger.seen if f"pruning_width/{LAYER}" in row]
    assert [step for step, _ in widths] == [0, 11, 14, 15]  # the start, two events, and the second validation
    assert widths[0][1] == widths[-1][1] == 6 > widths[1][1]


@pytest.mark.slow
def test_without_matplotlib_there_are_tables_and_a_hint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard", reason="this is about TensorBoard")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    logger = TensorBoardLogger(tmp_path)
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(Boring(zoo.Residual()), pruning(), tmp_path, logger=logger)
    found = stores.tensorboard(Path(logger.log_dir))
    assert "pip install 'lightning-taylor[plots]'" in caplog.text
    assert found.figures == set()
    assert "Target met" in found.texts["pruning/summary"]
    assert {"pruning.json", "pruning.html"} <= found.files


def _ranked(rank: int, folder: str) -> list[Any]:
    logger, files = Own(), CSVLogger(folder)
    options = {"devices": 2, "strategy": "ddp", "logger": [logger, files], "use_distributed_sampler": False}
    fit(Boring(zoo.Residual()), pruning(schedule=EVENTS), Path(folder), **options)
    return [row for _, row in logger.seen if "TaylorPruning" in row or "pruning_event/removed" in row]


@pytest.mark.slow
def test_only_rank_zero_logs(tmp_path: Path) -> None:
    first, second = all_well(on_ranks(2, _ranked, str(tmp_path)))
    assert len(first) == 4  # the settings, and three events
    assert second == []
    (folder,) = (tmp_path / "lightning_logs").iterdir()
    assert len(stores.comma_separated(folder).scalars["pruning_event/removed"]) == 3


def test_settings_become_plain_however_deep_they_are() -> None:
    class Circle:
        def __init__(self, inner: Any = None) -> None:
            self.inner = inner or self
            self.cache = object()

    found = plain_settings(a=Circle(Circle(3)), b={"c": (1, None)}, d=Circle())
    assert found["a"] == {"class": "Circle", "inner": {"class": "Circle", "inner": 3}}
    assert found["b"] == {"c": [1, None]}
    assert str(found["d"]).count("Circle") == 6


class Stopped(L.Callback):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def stop(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> str:
    """Interrupt a fit that reaches its target at step 3, and return the last line that was said."""
    lines: list[str] = []
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("lightning_taylor.fit.logging.rank_zero_info", lines.append)
    others = [Stopped(step), *([ModelCheckpoint(folder, every_n_train_steps=2)] if kwargs else [])]
    try:
        with pytest.raises(SystemExit):
            fit(Boring(zoo.Residual()), pruning(schedule=OneShot(3)), folder, others=others, **kwargs)
    finally:
        signal.signal(signal.SIGINT, handler)
    return lines[-1]


def test_ctrl_c_after_the_target_leaves_a_report_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = stop(tmp_path, 5, monkeypatch, enable_checkpointing=True)
    assert "Target met after 1 event" in capsys.readouterr().out
    assert (tmp_path / "pruning.html").exists()
    assert line.startswith("TaylorPruning was stopped at step 5, and goes on from ")
    assert Path(line.split(" goes on from ")[1].split(": ")[0]).is_file()


def test_ctrl_c_before_the_target_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = stop(tmp_path, 2, monkeypatch)
    assert not list(tmp_path.iterdir())
    assert line.startswith("TaylorPruning was stopped at step 2, before the first checkpoint was written")
