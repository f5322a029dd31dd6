"""``lightning-taylor inspect`` by a name, a configuration and a checkpoint, and what it answers to mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")

import lightning as L
from torch import Tensor, nn

from lightning_taylor import Gradual, TaylorPruning, cli, load_pruned
from lightning_taylor.cli.torchvision_models import usual_shape
from lightning_taylor.recipes.classifier import ImageClassifier
from lightning_taylor.recipes.digits import Digits

# Lightning 2.6 calls what the newest jsonargparse is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
Run = Callable[..., tuple[int, str, str]]


class ByHand(L.LightningModule):
    """Manual optimization, without an example input, and with a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        self.manual_backward(loss)
        return loss.detach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Grouped(ByHand):
    """A convolution of four groups, each of six channels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 24, 3), nn.Conv2d(24, 24, 3, groups=4), nn.Flatten(), nn.Linear(384, 10))


class SingleLinear(ByHand):
    """Its only channels are its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``lightning-taylor inspect`` in this process and gives its exit code, stdout and stderr."""

    def inspect(*args: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(["inspect", *args])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return inspect


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short fit of the digits, pruned to 60 % of the FLOPs."""
    folder = tmp_path_factory.mktemp("fit")
    pruner = TaylorPruning(target=0.6, schedule=Gradual(2, 2, 6), measure_latency=False)
    trainer = L.Trainer(max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[pruner],
                        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
                        limit_val_batches=0)  # fmt: skip
    trainer.fit(ImageClassifier("digits_cnn"), Digits())
    trainer.save_checkpoint(folder / "pruned.ckpt")
    return folder / "pruned.ckpt"


def test_a_network_by_its_name(run: Run) -> None:
    code, out, err = run("digits_cnn", "--target", "0.5", "--steps", "300")
    assert (code, err) == (0, "")
    assert "+ block.conv2" in out
    assert "reaches the output" in out
    assert "Target flops 50.0% met after" in out
    assert "A dry run has no scores" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_network_of_torchvision_at_a_shape_of_the_users(run: Run) -> None:
    code, out, err = run("squeezenet1_1", "--input-shape", "1", "3", "64", "64", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["met"]
    assert found["layers"][0] == {
        "layer": "features.0", "dense": 64, "now": 64, "least": 1, "groups": ["features.0"], "reason": "", "remedy": "",
        "flops": pytest.approx(found["layers"][0]["flops"]),
    }  # fmt: skip
    assert found["layers"][-1]["reason"] == "reaches the output"
    assert sum(layer["flops"] for layer in found["layers"]) == pytest.approx(1)
    assert found["events"][-1]["cost"]["flops"] <= 0.5 * found["dense"]["flops"]


def test_a_layer_keeps_what_max_removed_leaves_it(run: Run) -> None:
    def least(*shares: str) -> dict[str, float]:
        layers = json.loads(run("digits_cnn", "--target", "0.7", "--json", *shares)[1])["layers"]
        return {layer["layer"]: layer["least"] / layer["dense"] for layer in layers if layer["groups"]}

    assert set(least("--max-removed", "0.5").values()) == {0.5}
    named = least("--max-removed", "0.75", "block.conv2=0.25")
    assert named["block.conv2"] == 0.75
    assert set(named.values()) == {0.25, 0.75}


@pytest.mark.parametrize(
    ("name", "shape"),
    {
        "resnet18": [1, 3, 224, 224],
        "inception_v3": [1, 3, 299, 299],
        "efficientnet_v2_s": [1, 3, 384, 384],
        "r3d_18": [1, 3, 16, 112, 112],
        "fcn_resnet50": [1, 3, 520, 520],
        "digits_cnn": [1, 1, 8, 8],
    }.items(),
)
def test_the_usual_shape_is_the_one_that_the_published_weights_are_evaluated_at(name: str, shape: list[int]) -> None:
    assert usual_shape(name) == shape


def test_a_configuration_with_the_events_of_its_own_schedule_and_nothing_left_behind(run: Run) -> None:
    code, out, err = run("--config", "digits", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    events = Gradual(5, 147, 273).events(420)
    assert [event["step"] for event in found["events"]] == events[: len(found["events"])]
    assert found["asked"] == {"flops": 0.5}
    assert found["layers"][0]["layer"] == "net.stem.0"
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_the_schedule_of_the_main_job_follows_the_length_of_the_fit(run: Run) -> None:
    for epochs in (1, 2):
        code, out, err = run("--trainer.max_epochs", str(epochs), "--json")
        assert (code, err) == (0, "")
        steps = [event["step"] for event in json.loads(out)["events"]]
        assert 21 * (epochs - 1) < steps[-1] <= 0.7 * 21 * epochs
        assert len(steps) > 1


@pytest.mark.slow
def test_without_anything_it_is_the_main_job_and_options_of_a_fit_override(run: Run) -> None:
    code, out, _ = run("--trainer.callbacks.target=0.8", "--trainer.callbacks.schedule=null", "--trainer.max_epochs=2")
    assert code == 0
    assert "Target flops 80.0% met" in out
    assert json.loads(run("--json")[1])["asked"] == {"flops": 0.5}


def test_its_own_options_override_the_configuration(run: Run) -> None:
    code, out, _ = run("--config", "digits", "--target", "flops=0.7,params=0.9", "--ignore", "shrink", "--round-to",
                       "4", "--min-channels", "8", "--json")  # fmt: skip
    found = json.loads(out)
    layers = {layer["layer"]: layer for layer in found["layers"]}
    assert code == 0
    assert found["asked"] == {"flops": 0.7, "params": 0.9}
    assert "ignored" in layers["net.shrink.0"]["reason"]
    assert layers["net.stem.0"]["least"] == 8
    assert found["events"][-1]["widths"]["net.stem.0"] % 4 == 0


@pytest.mark.slow
def test_what_goes_from_a_grouped_convolution_is_chosen_in_the_configuration_or_over_it(run: Run) -> None:
    fit = ("--model", f"{__name__}.Grouped", "--data=Digits", "--trainer.max_epochs=1", "--target=0.9", "--json")
    callback = ("--trainer.callbacks=lightning_taylor.TaylorPruning", "--trainer.callbacks.conv_groups=whole")
    asked = {"auto": (), "whole": callback, "spread": (*callback, "--conv-groups", "spread")}
    for choice, least in {"auto": 4, "whole": 6, "spread": 4}.items():
        code, out, err = run(*fit, *asked[choice])
        assert code == 0, err
        assert json.loads(out)["layers"][0]["least"] == least, choice


def test_a_module_with_manual_optimization_and_no_callback_is_inspected_too(run: Run) -> None:
    code, out, _ = run("--model", f"{__name__}.ByHand", "--data=Digits", "--trainer.max_epochs=1", "--json")
    assert code == 0
    assert {layer["layer"]: layer["least"] for layer in json.loads(out)["layers"]} == {
        "net.0": 1, "net.2": 1, "net.4": 10}  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_with_what_it_was_and_its_events(run: Run, checkpoint: Path) -> None:
    code, out, err = run(str(checkpoint))
    assert (code, err) == (0, "")
    assert "Pruned in 2 events." in out
    found = json.loads(run(str(checkpoint), "--json")[1])
    model = load_pruned(ImageClassifier, checkpoint)
    for layer in found["layers"]:
        assert layer["now"] == model.get_submodule(layer["layer"]).weight.shape[0]  # type: ignore[union-attr,index]
    assert [event["step"] for event in found["events"]] == [4, 6]
    assert found["now"]["flops"] <= 0.6 * found["dense"]["flops"]
    assert found["layers"][0]["dense"] == 48


def test_a_target_out_of_reach_ends_with_the_table_and_one(run: Run) -> None:
    code, out, err = run("digits_cnn", "--min-channels", "150")
    assert code == 1
    assert "TARGET OUT OF REACH" in out
    assert "the target flops=0.5 cannot be met" in err


def test_a_model_without_removable_channels_ends_with_the_reasons_and_one(run: Run) -> None:
    code, out, err = run("--model", f"{__name__}.SingleLinear", "--data=Digits", "--trainer.max_epochs=1")
    assert code == 1
    assert "reaches the output" in out
    assert "no channel of this model can be removed" in err


WRONG = {
    "name with a shape": (["resnet81", "--input-shape", "1", "3", "32", "32"], "no model of torchvision is called"),
    "name": (["resnet81"], "no model of torchvision is called 'resnet81'; did you mean resnet18"),
    "configuration as a name": (["digits"], "digits is a configuration: write --config digits"),
    "file": (["runs/last.ckpt"], "no file 'runs/last.ckpt'"),
    "option": (["resnet18", "--taget", "0.5"], "no option '--taget'; did you mean --t"),
    "target": (["resnet18", "--target", "half"], "--target: 'half' is neither 0.5 nor flops=0.5,params=0.4"),
    "range": (["resnet18", "--target", "5"], "target flops=5.0 is not a fraction of the dense model"),
    "resource": (["resnet18", "--target", "flop=0.5"], "'flop=0.5' names no resource: flops, params, channels"),
    "steps": (["digits_cnn", "--steps", "1"], "a fit of 1 optimizer steps is too short"),
    "shape": (["resnet18", "--input-shape", "3", "x"], "--input-shape: expected a whole number from 1 on, got 'x'"),
    "channels": (["squeezenet1_1", "--input-shape", "1", "1", "64", "64"], "SqueezeNet raised RuntimeError on"),
    "pattern": (["digits_cnn", "--ignore", "layr"], "ignore pattern 'layr' matches no layer; the layers are stem.0"),
    "two": (["resnet18", "resnet50"], "unrecognized arguments: resnet50"),
    "shape of a configuration": (["--config", "digits", "--input-shape", "1"], "--input-shape goes with the name of a"),
    "configuration": (["--config", "digit"], "no configuration 'digit'"),
    "option of the fit": (["--config", "digits", "--trainer.max_epoch=3"], "no option 'trainer.max_epoch'; did"),
    "typo beside a configuration": (["--config", "digits", "--taget=0.5"], "no option '--taget'; did you mean --t"),
    "share": (["resnet18", "--max-removed", "layer4=5"], "'layer4=5' is neither a share in [0, 1] such as 0.9"),
    "layer of a share": (["digits_cnn", "--max-removed", "layr=0.5"], "'layr' matches no layer; the layers are stem.0"),
    "too short": (["--trainer.callbacks.schedule=OneShot", "--trainer.callbacks.schedule.step=421"], "needs 421 optim"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_answered_in_a_line_or_two(run: Run, args: list[str], message: str) -> None:
    code, out, err = run(*args)
    assert code == (1 if "raised" in message else 2)
    assert message in err
    assert err.startswith("lightning-taylor: error: ")
    assert len(err.splitlines()) <= 2
    assert "Traceback" not in out + err


def test_a_file_that_is_no_checkpoint_of_a_pruning_is_refused_with_the_reason(run: Run, checkpoint: Path) -> None:
    Path("words.ckpt").write_text("no checkpoint")
    torch.save({"epoch": 1}, "other.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "callbacks": {}}, "without.ckpt")
    state = content["callbacks"]["TaylorPruning"]
    torch.save({**content, "callbacks": {"TaylorPruning": {**state, "graph": None, "record": None}}}, "early.ckpt")
    torch.save({**content, "callbacks": {"TaylorPruning": {**state, "graph": {"groups": 3}}}}, "broken.ckpt")
    for name, message in {
        "words.ckpt": "is no checkpoint: it cannot be read, or is damaged",
        "other.ckpt": "is no Lightning checkpoint: it has no state_dict",
        "without.ckpt": "holds no state of TaylorPruning",
        "early.ckpt": "was saved before the first training batch",
        "broken.ckpt": "what broken.ckpt says about its pruning cannot be read",
    }.items():
        code, _, err = run(name)
        assert (code, message in err) == (2, True), err
    assert "leave out every option but --json" in run(str(checkpoint), "--target", "0.5")[2]


def test_its_help_has_examples(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert "lightning-taylor inspect resnet18 --target 0.5 --steps 1000" in out
