"""``lightning-taylor compare --config``: the YAML of a fit names the net, the data and the criterion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")
pytest.importorskip("matplotlib", reason="needs the extra plots")

from lightning_taylor.cli import compare_curves as curves
from lightning_taylor.cli import curve_fit
from lightning_taylor.recipes.classifier import ImageClassifier
from lightning_taylor.recipes.digits import Digits
from lightning_taylor.study.curves import Curve, CurvePoint

Run = Callable[..., tuple[int, str, str]]
OWN = "TaylorBatch(momentum=0.9)"
PRUNING = {
    "class_path": "lightning_taylor.TaylorPruning",
    "init_args": {
        "ignore": ["stem"],
        "criterion": {"class_path": "lightning_taylor.TaylorBatch", "init_args": {"momentum": 0.9}},
    },
}
CONFIG: dict[str, Any] = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "callbacks": [PRUNING]},
    "model": {"class_path": "ImageClassifier", "init_args": {"model": "digits_cnn"}},
    "data": {"class_path": "Digits", "init_args": {"batch_size": 100}},
}
FEW = ("--examples", 16, "--batch-size", 8, "--fraction", 0.01, "--resamples", 2, "--json")

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.usefixtures("narrow_digits"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, narrow_digits: None) -> Path:
    """The checkpoint of a short fit."""
    folder = tmp_path_factory.mktemp("trained")
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(ImageClassifier(num_classes=10), Digits())
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with nothing but run.yaml."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)
    write(CONFIG)


def write(config: dict[str, Any], name: str = "run.yaml") -> None:
    Path(name).write_text(yaml.safe_dump(config))


def table(answer: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = answer
    assert code == 0, err
    return json.loads(out)


@pytest.mark.slow
def test_it_is_another_word_for_model(trained: Path, run: Run) -> None:
    criteria = ("--criteria", "Taylor", "Random")
    tables = [
        table(run("compare", trained, word, "run.yaml", *FEW, *criteria, "--out", word.strip("-")))
        for word in ("--config", "--model", "-c")
    ]
    assert tables[0] == tables[1] == tables[2]
    assert set(tables[0]["cells"]) == {"Taylor", "Random"}


@pytest.mark.slow
def test_the_criterion_of_its_pruning_is_compared_and_its_ignored_layers_stay(trained: Path, run: Run) -> None:
    found = table(run("compare", trained, "--config", "run.yaml", *FEW))
    assert OWN in found["cells"]
    assert "TaylorBatch" in found["cells"]
    write({**CONFIG, "trainer": {}})
    without = table(run("compare", trained, "--config", "run.yaml", *FEW, "--criteria", "Random", "--out", "all"))
    assert 0 < found["groups"] < without["groups"]
    assert run("compare", trained, "--config", "run.yaml", *FEW, "--criteria", OWN)[0] == 2


def test_curves_add_it_to_those_that_they_are_of_by_default(
    trained: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fit_curve(_: Any, config: Any, name: str, seed: int, path: str, metric: Any) -> tuple[Curve, str]:
        asked.append(name)
        assert (config.name, path) == ("run.yaml", str(trained))
        return Curve(name, seed, (CurvePoint(0, 1, 1, 1, 0.9), CurvePoint(9, 0.2, 0.1, 0.2, 0.8))), "val_acc"

    monkeypatch.setattr(curve_fit, "fit_curve", fit_curve)
    assert run("compare", trained, "--config", "run.yaml", "--curves", "--seeds", 0)[0] == 0
    assert asked == [*curves.DEFAULT, OWN, "dense"]


@pytest.mark.slow
def test_its_criterion_prunes_in_curves(trained: Path, run: Run) -> None:
    command = ("compare", trained, "--config", "run.yaml", "--curves", "--seeds", 0, "--criteria", OWN, "--target", 0.6,
               "--points", 1, "--trainer.limit_val_batches=1", "--data.batch_size", 200, "--json")  # fmt: skip
    dense, found = table(run(*command))["curves"]
    assert found["criterion"] == OWN
    assert found["points"][-1]["flops"] <= 0.6 < dense["points"][-1]["flops"]
    # Of the fit's own options, 1,347 digits in batches of 200.
    assert found["points"][-1]["step"] == 6
    other = run(*command, "--data.batch_size=300")
    assert other[0] == 2
    assert "which was --trainer.limit_val_batches=1 --data.batch_size 200" in other[2]


@pytest.mark.slow
def test_without_a_checkpoint_it_is_the_network_that_the_configuration_builds(run: Run) -> None:
    command = ("compare", "--config", "run.yaml", *FEW, "--criteria", "Taylor")
    first = run(*command)
    assert "no checkpoint was given: this is the network as run.yaml builds it, compared/start.ckpt" in first[2]
    saved = Path("compared/start.ckpt").read_bytes()
    assert table(run(*command)) == table(first)
    assert Path("compared/start.ckpt").read_bytes() == saved
    write({**CONFIG, "seed_everything": 7})
    assert table(run(*command, "--out", "other")) != table(first)
    code, _, err = run(*command, "--model.num_classes=3", "--out", "third")
    assert (code, "makes 3 classes and the data has 10" in err) == (2, True)


@pytest.mark.slow
def test_a_checkpoint_can_be_named_as_fit_and_validate_name_it(trained: Path, run: Run) -> None:
    command = ("compare", "--config", "run.yaml", *FEW, "--criteria", "Taylor", "--out")
    expected = table(run(*command, "a", trained))
    assert table(run(*command, "b", "--ckpt_path", trained)) == expected
    write({**CONFIG, "ckpt_path": str(trained)})
    assert table(run(*command, "c")) == expected
    code, _, err = run(*command, "d", trained, "--ckpt_path", "last.ckpt")
    assert (code, "given twice" in err) == (2, True)


@pytest.mark.slow
def test_a_configuration_that_ships_goes_by_its_name(run: Run) -> None:
    found = table(run("compare", "--config", "digits", *FEW, "--criteria", "Taylor"))
    assert list(found["cells"]) == ["Taylor"]


def changed(part: str, **values: Any) -> dict[str, Any]:
    return {**CONFIG, part: {**CONFIG[part], **values}}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"data": CONFIG["data"]}, "run.yaml has no `model`, only 'data'"),
    "mistyped model": ({"modle": CONFIG["model"]}, "run.yaml has no `model`, but `modle`"),
    "no data": ({"model": CONFIG["model"], "trainer": {}}, "run.yaml has no `data`, only "),
    "mistyped data": ({**CONFIG, "date": CONFIG["data"]}, "run.yaml: no option 'date'; did you mean data"),
    "class": (changed("data", class_path="Digit"), "run.yaml: data: no class is called 'Digit'; give its import path"),
    "argument": (
        changed("data", init_args={"batchsize": 8}),
        "run.yaml: data: Digits has no option 'batchsize'; did you mean batch_size?",
    ),
    "trainer": (changed("trainer", max_epoch=3), "run.yaml: no option 'trainer.max_epoch'; did you mean"),
    "type": (changed("trainer", max_epochs="x"), "run.yaml: trainer.max_epochs: Expected int. Got value: x"),
    "callback": (
        changed("trainer", callbacks=[{**PRUNING, "init_args": {"ignored": []}}]),
        "run.yaml: trainer.callbacks: TaylorPruning has no option 'ignored'; did you mean ignore?",
    ),
    "value": (
        changed("trainer", callbacks=[{**PRUNING, "init_args": {"target": 5}}]),
        "run.yaml: target flops=5.0 is not a fraction of the dense model in (0, 1]",
    ),
    "pattern": (
        changed("trainer", callbacks=[{**PRUNING, "init_args": {"ignore": ["stm"]}}]),
        "stm",
    ),
    "checkpoint": ({**CONFIG, "ckpt_path": "lost.ckpt"}, "no file 'lost.ckpt'"),
    "flat": (
        {**CONFIG, "data": {"batch_size": 3}, "model": {"lr": 0.1}},
        "run.yaml does not say of which class its `data` is",
    ),
    "flat model": ({**CONFIG, "model": {"lr": 0.1}}, "run.yaml does not say of which class its `model` is"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_in_it_is_answered_with_the_file_and_the_key(
    config: dict[str, Any], message: str, trained: Path, run: Run
) -> None:
    write(config)
    checkpoint = [] if "ckpt_path" in config else [trained]
    code, out, err = run("compare", *checkpoint, "--config", "run.yaml", *FEW)
    assert message in err
    assert (code, out) == (2, "")
    assert len(err.splitlines()) <= 2


def test_a_file_that_is_not_there_or_no_configuration_is_named(trained: Path, run: Run) -> None:
    def said(*words: object) -> str:
        code, out, err = run("compare", trained, *words)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) <= 2
        return err

    assert "no configuration 'rum.yaml': no such file" in said("--config", "rum.yaml")
    assert "did you mean run.yaml?" in said("--config", "rum.yaml")
    assert "no configuration 'my.Net': no such file" in said("--config", "my.Net")
    Path("empty.yaml").touch()
    assert "empty.yaml holds no settings" in said("--config", "empty.yaml")
    Path("torn.yaml").write_text("model: [")
    assert "torn.yaml is not YAML" in said("--config", "torn.yaml")
    twice = "two configurations, --model run.yaml and --config run.yaml: give one of them"
    assert twice in said("--model", "run.yaml", "--config", "run.yaml")
    assert "give --config the YAML of the fit" in said()
    assert "my.Net is a class" in said("--model", "my.Net")
    assert "--out run.yaml is a file: give a folder" in said("--config", "run.yaml", "--out", "run.yaml")
