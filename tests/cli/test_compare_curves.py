"""``lightning-taylor compare --curves``: from a checkpoint and a configuration to curves of several criteria."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")
pytest.importorskip("matplotlib", reason="needs the extra plots")

from matplotlib.image import imread

from lightning_taylor import Gradual, Random, TaylorPruning
from lightning_taylor.cli import curve_fit
from lightning_taylor.cli.main import main
from lightning_taylor.recipes.classifier import ImageClassifier
from lightning_taylor.recipes.digits import Digits

Run = Callable[..., tuple[int, str, str]]
CONFIG: dict[str, Any] = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 2},
    "model": {
        "class_path": "lightning_taylor.recipes.classifier.ImageClassifier",
        "init_args": {"model": "digits_cnn", "schedule": "constant"},
    },
    "data": {"class_path": "lightning_taylor.recipes.digits.Digits", "init_args": {"batch_size": 100}},
}
STEPS = 13  # of the configuration's one epoch
OPTIONS = ("--curves", "--every", "2", "--target", "0.4", "--points", "3")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.usefixtures("narrow_digits"),
]


class Inaccurate(ImageClassifier):
    """Logs no accuracy."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_error", 1.0 - (self(batch[0]).argmax(1) == batch[1]).float().mean())


def fit(folder: Path, *callbacks: L.Callback, module: L.LightningModule | None = None) -> L.Trainer:
    """A fit made by hand, as the configuration says."""
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=2, default_root_dir=folder, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module or ImageClassifier(num_classes=10, schedule="constant"), Digits(batch_size=100))
    return trainer


@pytest.fixture(autouse=True)
def _seeds_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, narrow_digits: None) -> Path:
    """A folder with a checkpoint, its configuration, and a finished comparison with its JSON."""
    folder, here, environment = tmp_path_factory.mktemp("trained"), Path.cwd(), dict(os.environ)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    L.seed_everything(0, verbose=False)
    fit(folder).save_checkpoint(folder / "last.ckpt")
    os.chdir(folder)
    try:
        main(["compare", "last.ckpt", "--model", "config.yaml", *OPTIONS, "--criteria", "Taylor", "Random", "--seeds",
              "0", "1"])  # fmt: skip
    finally:
        os.chdir(here)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(run: Run, *options: object, criteria: tuple[str, ...] = ("Taylor", "Random")) -> tuple[int, str, str]:
    command = ("compare", "last.ckpt", "--model", "config.yaml", *OPTIONS, "--criteria", *criteria)
    return run(*command, "--seeds", 0, 1, *options)


def runs(file: Path) -> dict[tuple[str, int], dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {(row["criterion"], row["seed"]): row for row in rows}


def no_fit(*_: object) -> None:
    raise AssertionError("a fit was begun that was not asked for")


def test_every_criterion_and_seed_begins_with_the_same_dense_network(trained: Path) -> None:
    found = runs(trained / "compared" / "curves.jsonl")
    assert set(found) == {(name, seed) for name in ("Taylor", "Random", "dense") for seed in (0, 1)}
    begins = [row["points"][0] for row in found.values()]
    assert all(point == begins[0] for point in begins)
    assert begins[0]["flops"] == begins[0]["channels"] == begins[0]["params"] == 1.0
    # Validated as by hand, where nothing was pruned or resumed.
    by_hand = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=2
    )
    module = ImageClassifier.load_from_checkpoint(trained / "last.ckpt", weights_only=True)
    (metrics,) = by_hand.validate(module, Digits(batch_size=100), verbose=False)
    assert begins[0]["metric"] == metrics["val_acc"]


def test_all_of_them_are_measured_after_the_same_steps_on_the_way_to_the_target(trained: Path) -> None:
    found = runs(trained / "compared" / "curves.jsonl")
    # Events after steps 3, 5, 7 and 8; one third, two thirds and all of them, and the end.
    assert {tuple(point["step"] for point in row["points"]) for row in found.values()} == {(0, 4, 7, 9, STEPS)}
    for (name, _), row in found.items():
        flops = [point["flops"] for point in row["points"]]
        assert flops == sorted(flops, reverse=True)
        assert flops[-1] == 1.0 if name == "dense" else 0.36 < flops[-1] <= 0.4
        assert row["settings"]["metric"] == "val_acc"


def test_seeds_differ(trained: Path) -> None:
    found = runs(trained / "compared" / "curves.jsonl")
    for name in ("Taylor", "Random", "dense"):
        assert found[name, 0]["points"][1:] != found[name, 1]["points"][1:]


def test_a_run_is_the_fit_that_a_user_would_have_made(trained: Path, tmp_path: Path) -> None:
    """Neither the validations in between nor the command around it move the training."""
    module = ImageClassifier.load_from_checkpoint(trained / "last.ckpt", weights_only=True)
    L.seed_everything(1, workers=True, verbose=False)
    pruner = TaylorPruning(0.4, Gradual(2, 1, 8), Random(seed=1), measure_latency=False)
    trainer = fit(tmp_path, pruner, module=module)
    last = runs(trained / "compared" / "curves.jsonl")["Random", 1]["points"][-1]
    assert last["metric"] == float(trainer.callback_metrics["val_acc"])
    assert {name: last[name] for name in pruner.remaining} == pruner.remaining


def test_the_picture_can_be_read(trained: Path) -> None:
    picture = imread(trained / "compared" / "curves.png")
    assert picture.shape[1] >= 1000
    assert picture.std() > 0.05, "it is not blank"


def test_a_finished_comparison_is_shown_and_not_repeated(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (here / "compared" / "curves.jsonl").read_bytes()
    (here / "compared" / "curves.png").unlink()
    monkeypatch.setattr(curve_fit, "fit_curve", no_fit)
    code, out, err = compare(run)
    assert (code, err) == (0, "")
    assert "2 seeds" in out
    assert all(name in out for name in ("Taylor", "Random", "dense"))
    assert (here / "compared" / "curves.jsonl").read_bytes() == before
    assert (here / "compared" / "curves.png").is_file()
    code, out, _ = compare(run, "--json")
    table = json.loads(out)
    assert (code, table["metric"], table["seeds"], len(table["curves"])) == (0, "val_acc", 2, 6)
    assert table["criteria"]["Taylor"]["at_flops"]["0.5"]["sd"] is not None


@pytest.fixture
def _signals_put_back() -> Iterator[None]:
    """After a Ctrl-C, Lightning leaves the next one without effect."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_signals_put_back")
def test_an_interrupted_comparison_goes_on_to_the_same_numbers(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = here / "compared" / "curves.jsonl"
    whole = file.read_text()
    file.write_text("".join(line + "\n" for line in whole.splitlines()[:-2]))

    def interrupt(module: ImageClassifier, *_: object) -> None:
        if file.read_text().count("\n") == 5 and module.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_train_batch_start", interrupt)
        code, out, err = compare(run)
    assert (code, out) == (1, "")
    assert "5 of 6: Random, seed 1" in err
    assert "interrupted" in err
    assert file.read_text() == "".join(line + "\n" for line in whole.splitlines()[:-1])

    code, _, err = compare(run)
    assert code == 0
    assert [line.partition(":")[0] for line in err.splitlines()] == ["6 of 6"]
    assert file.read_text() == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", 0.3], "target=0.3, which was 0.4"),
        (["--points", 5], "points=5, which was 3"),
        (["--metric", "val_loss"], "metric=val_loss, which was val_acc"),
    ],
)
def test_other_settings_are_an_error_that_names_them(
    options: list[object], message: str, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve_fit, "fit_curve", no_fit)
    code, _, err = compare(run, *options)
    assert code == 2
    assert message in err
    assert "--out" in err


def test_another_configuration_or_checkpoint_is_an_error_that_names_it(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve_fit, "fit_curve", no_fit)
    other = {**CONFIG, "data": {**CONFIG["data"], "init_args": {"batch_size": 50}}}
    (here / "config.yaml").write_text(yaml.safe_dump(other))
    assert "data.init_args.batch_size=50, which was 100" in compare(run)[2]
    (here / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "seed_everything": 7}))
    assert compare(run)[0] == 0, "the seeds are the command's own"
    with (here / "last.ckpt").open("ab") as file:
        file.write(b" ")
    assert "checkpoint=" in compare(run)[2]


def test_the_configuration_keeps_its_callbacks_but_those_that_stop_write_or_print(here: Path, run: Run) -> None:
    callbacks = [
        {"class_path": "LearningRateMonitor"},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val_acc", "stopping_threshold": 0.0, "mode": "max"}},
        {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val_acc"}},
        {
            "class_path": "lightning_taylor.TaylorPruning",
            "init_args": {
                "target": 0.9,
                "round_to": 4,
                "schedule": {"class_path": "lightning_taylor.plan.OneShot", "init_args": {"step": 6}},
            },
        },
    ]
    trainer = {**CONFIG["trainer"], "max_epochs": 3, "check_val_every_n_epoch": 2, "callbacks": callbacks}
    (here / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": trainer}))
    files = set(here.rglob("*"))
    code, out, _ = run("compare", "last.ckpt", "--model", "config.yaml", "--curves", "--criteria", "WeightMagnitude",
                       "--seeds", 5, "--target", 0.5, "--out", "other", "--json")  # fmt: skip
    assert code == 0
    points = json.loads(out)["curves"][1]["points"]
    # Its own schedule, to the command's target, and to the end.
    assert [point["step"] for point in points] == [0, 6, 3 * STEPS]
    assert points[1]["flops"] == points[2]["flops"] <= 0.5
    new = {path.relative_to(here).as_posix() for path in set(here.rglob("*")) - files}
    assert new == {"other", "other/curves.jsonl", "other/curves.png"}


def test_steps_and_a_penalty_on_flops_come_from_the_command_line(here: Path, run: Run) -> None:
    for name, penalty in (("free", 0), ("dear", 1000)):
        code, _, err = run("compare", "last.ckpt", "--model", "config.yaml", "--curves", "--criteria", "Taylor+FLOPs",
                           "--seeds", 0, "--target", 0.2, "--steps", 6, "--cost-penalty", penalty, "--out", name,
                           "--metric", "val_loss", "--points", 1)  # fmt: skip
        assert code == 0, err
    free, dear = (runs(here / name / "curves.jsonl")["Taylor+FLOPs", 0]["points"] for name in ("free", "dear"))
    assert [point["step"] for point in free] == [0, 4, 6]
    # Where FLOPs are all that counts, fewer channels have to go for the same number of them.
    assert dear[-1]["channels"] > free[-1]["channels"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criteria", "Tailor"], "there are 'Taylor', 'Taylor, mean over positions', "),
        (["--metric", "val_ac"], "the validation logs no 'val_ac'; did you mean val_acc?"),
        (["--target", "5"], "--target: expected a share of the dense network's FLOPs below 1, got '5'"),
        (["--cost-penalty", "-1"], "--cost-penalty: expected a number from 0 on, got '-1'"),
        (["--seeds", "0", "0"], "--seeds: 0 0 are not different"),
        (["--fraction", "0.5"], "--fraction has no meaning with --curves"),
        (["--target", "0.000001"], "cannot be met"),
        (["--every", "8"], "--every 8: of this fit's 13 steps, 7 are there to remove channels"),
        (["--model", "lightning_taylor.recipes.classifier.ImageClassifier"], "give --config the YAML of the fit"),
        (["--model", "confik.yaml"], "confik.yaml"),
    ],
)
def test_a_mistake_is_answered_in_a_line(options: list[str], message: str, here: Path, run: Run) -> None:
    command = ["compare", "last.ckpt", "--model", "config.yaml", "--curves", "--out", "new", *options]
    code, out, err = run(*command)
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert len(err.splitlines()) <= 3
    assert not (here / "new").exists()


def test_a_checkpoint_or_configuration_that_will_not_do_is_named(here: Path, run: Run) -> None:
    def said(*command: str) -> str:
        code, _, err = run("compare", *command, "--curves", "--out", "new")
        assert code == 2
        return err

    assert "give --config the YAML of the fit" in said("last.ckpt")
    assert "no file 'lost.ckpt'" in said("lost.ckpt", "--model", "config.yaml")
    assert "2 for 3 checkpoints" in said(*["last.ckpt"] * 3, "--model", "config.yaml", "--seeds", "0", "1")
    assert "no checkpoint" in said("config.yaml", "--model", "config.yaml")

    fit(here, TaylorPruning(0.5, measure_latency=False)).save_checkpoint(here / "pruned.ckpt")
    assert "pruned.ckpt is pruned already" in said("pruned.ckpt", "--model", "config.yaml")
    (here / "bare.yaml").write_text(yaml.safe_dump({"model": CONFIG["model"]}))
    assert "bare.yaml has no `data`" in said("last.ckpt", "--model", "bare.yaml")
    (here / "endless.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": {"accelerator": "cpu"}}))
    assert "give --steps" in said("last.ckpt", "--model", "endless.yaml")
    model = {**CONFIG["model"], "init_args": {"model": "resnet18", "num_classes": 10}}
    (here / "larger.yaml").write_text(yaml.safe_dump({**CONFIG, "model": model}))
    assert "last.ckpt does not fit the model of larger.yaml" in said("last.ckpt", "--model", "larger.yaml")


def test_every_criterion_sees_the_same_batches_in_the_same_order(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def see(module: ImageClassifier, batch: Any, *_: object) -> None:
        seen[-1].extend(batch[1].tolist())

    monkeypatch.setattr(ImageClassifier, "on_train_start", lambda _: seen.append([]))
    monkeypatch.setattr(ImageClassifier, "on_train_batch_start", see)
    criteria = ("OBD", "Random", "MutualInformation", "Taylor")  # the first three draw random numbers or look twice
    code, _, err = run("compare", "last.ckpt", "--model", "config.yaml", *OPTIONS, "--criteria", *criteria,
                       "--seeds", 3, "--out", "new")  # fmt: skip
    assert code == 0, err
    assert len(seen) == 5
    assert all(labels == seen[0] for labels in seen)
    assert len(seen[0]) == 100 * STEPS


def test_a_validation_without_accuracy_wants_to_be_asked_for_what_it_logs(here: Path, run: Run) -> None:
    model = {"class_path": f"{__name__}.Inaccurate", "init_args": {"schedule": "constant"}}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}}
    trainer = {**CONFIG["trainer"], "logger": logger}
    (here / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "model": model, "trainer": trainer}))
    command = ("compare", "last.ckpt", "--model", "config.yaml", "--curves", "--criteria", "Random", "--seeds", 0)
    code, _, err = run(*command, "--out", "new")
    assert code == 2
    assert "the validation logs nothing with `acc` in its name; there are val_error" in err
    code, out, _ = run(*command, "--out", "new", "--metric", "val_error", "--json")
    assert (code, json.loads(out)["metric"]) == (0, "val_error")
    assert not (here / "elsewhere").exists()


def test_options_of_curves_are_refused_without_it(here: Path, run: Run) -> None:
    code, _, err = run("compare", "last.ckpt", "--model", "config.yaml", "--target", 0.3)
    assert (code, "--target has no meaning without --curves" in err) == (2, True)
