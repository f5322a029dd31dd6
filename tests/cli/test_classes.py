"""A LightningCLI project whose YAML has no class, and a script that trains when it is imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

pytest.importorskip("jsonargparse", reason="needs the extra cli")

from cli.test_own_project import SCRIPT
from lightning_taylor.cli.classes import with_classes_first

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

Run = Callable[..., tuple[int, str, str]]
CONFIG = {"trainer": {"max_epochs": 1, "accelerator": "cpu"}, "model": {"width": 12}, "data": {}}
BOTH = ("--model", "own_project.MyModule", "--data", "own_project.MyData")
CHANGES = {
    "self.save_hyperparameters()": "self.lr = lr",
    "self.hparams.lr": "self.lr",
    "DataModule):\n": "DataModule):\n    def __init__(self, batch_size: int = 8):\n        super().__init__()\n"
    "        self.batch_size = batch_size\n\n",
    "batch_size=8": "batch_size=self.batch_size",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its folder, with own_project.py and config.yaml, both as their author has them."""
    script = SCRIPT.format(lightning="lightning.pytorch", cli="cli")
    for old, new in CHANGES.items():
        assert old in script
        script = script.replace(old, new)
    Path(tmp_path / "own_project.py").write_text(script)
    Path(tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": {"batch_size": 16}}))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_project", raising=False)


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Of a net that is not as wide as its class makes it by default, and that remembers no argument."""
    monkeypatch.syspath_prepend(tmp_path)
    import own_project  # type: ignore[import-not-found]

    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(own_project.MyModule(width=12))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("word", ["--model", "--config"])
def test_inspect_and_fit_take_the_yaml_with_the_classes_beside_it(run: Run, word: str) -> None:
    config = (word, "config.yaml", *(BOTH if word == "--config" else (*BOTH[2:], "--model=own_project.MyModule")))
    code, out, err = run("inspect", *config, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["layers"][0]["dense"] == 12
    code, out, err = run("fit", *config, "--trainer.logger=false", "--model.lr=0.5", "--print_config")
    made = yaml.safe_load(out)
    assert (code, made["model"]["init_args"], made["data"]["init_args"]) == (
        0, {"width": 12, "lr": 0.5}, {"batch_size": 16})  # fmt: skip


@pytest.mark.slow
def test_commands_on_a_checkpoint_take_it_too(run: Run, checkpoint: Path) -> None:
    shape = ("--input-shape", 2, 1, 8, 8)
    given = (
        "export",
        checkpoint,
        "--format=torch_export",
        "--config",
        "config.yaml",
        "--model",
        "own_project.MyModule",
    )
    part = (*given, "--submodule", "net")
    assert run(*part, *shape)[0] == 0
    assert torch.export.load("last.pt2").module()(torch.rand(2, 1, 8, 8)).shape == (2, 2)
    code, out, err = run(*part, *BOTH[2:], "--output", "of_data.pt2")
    assert (code, "examples of MyData's validation set" in out) == (0, True), err


@pytest.mark.parametrize("command", ["fit", "inspect", "export", "benchmark", "compare"])
def test_a_yaml_without_classes_is_answered_with_what_to_add(run: Run, checkpoint: Path, command: str) -> None:
    path = {"fit": (), "inspect": (), "export": (checkpoint, "--format=state_dict")}.get(command, (checkpoint,))
    code, _, err = run(command, *path, "--model", "config.yaml")
    said = {
        "compare": "`data` is: add --data my_project.Data",
        "export": "`model` is: add --model my_project.Net",
        "benchmark": "`model` is: add --model my_project.Net",
    }.get(command, "`model` and `data` are: add --model my_project.Net --data my_project.Data")
    assert (code, err) == (2, f"lightning-taylor: error: config.yaml does not say of which class its {said}\n")


def test_a_class_for_the_settings_alone_is_answered_with_what_to_add(run: Run) -> None:
    code, _, err = run("fit", "--config=config.yaml", *BOTH[:2])
    assert (code, "which class its `data` is: add --data my_project.Data" in err) == (2, True)
    code, _, err = run("export", "config.yaml", "--format=onnx", *BOTH[2:])
    assert (code, "--data own_project.MyData goes with --config" in err) == (2, True)


def test_settings_without_a_class_may_follow_a_configuration_that_has_one() -> None:
    Path("first.yaml").write_text("model: {class_path: nets.Net}\ndata: nets.Data\n")
    args = ["fit", "--config=first.yaml", "--config", "config.yaml"]
    assert with_classes_first(args) == args


TRAINS = {
    "trainer": "import lightning as L\nclass Net(L.LightningModule): pass\nL.Trainer(logger=False).fit(Net(), [])\n",
    "cli": "from lightning.pytorch.cli import LightningCLI\nfrom lightning import LightningModule\n"
    "class Net(LightningModule): pass\nLightningCLI(Net)\n",
}  # fmt: skip


@pytest.mark.parametrize("command", ["export", "fit"])
@pytest.mark.parametrize("kind", TRAINS)
def test_a_script_that_trains_when_imported_is_stopped_and_named(
    run: Run, checkpoint: Path, kind: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(f"{kind}_script.py").write_text(TRAINS[kind])
    monkeypatch.delitem(sys.modules, f"{kind}_script", raising=False)
    given = (checkpoint, "--format=torch_export") if command == "export" else ()
    code, _, err = run(command, *given, "--model", f"{kind}_script.Net")
    assert (code, err.count("\n")) == (2, 1), err
    assert f"{kind}_script.py trains when it is imported: put that part of it below `if __name__ == " in err
