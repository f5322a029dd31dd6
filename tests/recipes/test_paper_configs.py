"""The paper's experiments: the settings that it states, and a few steps of each on made data in the real layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torchvision
from torch import nn

pytest.importorskip("jsonargparse", reason="needs the extra cli")

from lightning_taylor import TaylorPruning, cli
from lightning_taylor.recipes import classifier
from lightning_taylor.recipes.r3dcnn import WIDTHS

# Lightning 2.6 calls what the newest jsonargparse is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

STATED: dict[str, tuple[float, int, float, float, int]] = {
    "vgg16_birds200": (1e-4, 30, 1e-3, 10 / 30.96, 2112),
    "vgg16_flowers102": (1e-4, 30, 1e-3, 10 / 30.96, 2112),
    "alexnet_flowers102": (1e-4, 10, 0.0, 0.4 / 1.46, 1152),
    "alexnet_birds200": (1e-4, 10, 0.0, 0.4 / 1.46, 1152),
    "alexnet_imagenet": (1e-4, 100, 0.0, 0.5, 1152),
    "vgg16_imagenet": (1e-4, 100, 1e-3, 11.5 / 30.96, 1436),
    "r3dcnn_nvgesture": (3e-4, 10, 1e-3 / 10, 3.0 / 37.8, 2064),
}
"""Learning rate while pruning, updates per map, penalty per MFLOP of an example, FLOPs that remain, and how many maps
have to go (where the paper does not say: half of VGG's, all of AlexNet's)."""
EPOCHS_BEFORE = {"vgg16_birds200": (60, 5994), "alexnet_flowers102": (20, 2040), "alexnet_imagenet": (0, 1281167),
                 "vgg16_imagenet": (0, 1281167)}  # fmt: skip
"""Dense epochs before the pruning, and training images; where the paper states them."""


class Built(cli.TaylorCLI):
    """Stops short of running."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.ran = subcommand


@pytest.fixture(autouse=True)
def _undo_the_seed(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """seed_everything leaves variables in the environment."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="module")
def settings() -> Callable[[str], dict[str, Any]]:
    """What a configuration says, after the defaults: trainer, pruning, schedule, model and data."""

    @cache
    def read(name: str) -> dict[str, Any]:
        config = Built(["fit", "--config", str(cli.shipped_configs()[name])]).config["fit"]
        pruning = config["trainer"]["callbacks"][0]["init_args"]
        found = {name: pruning[name]["init_args"] for name in ("schedule", "criterion")}
        found |= {name: config[name]["init_args"] for name in ("model", "data")}
        return {"trainer": config["trainer"], "pruning": pruning, **found}

    return read


def test_there_is_one_configuration_for_each_experiment() -> None:
    assert set(STATED) == set(cli.shipped_configs()) - {"digits", "flowers12"}


@pytest.mark.parametrize("name", STATED)
def test_an_experiment_has_the_settings_that_the_paper_states(name: str, settings: Callable[..., Any]) -> None:
    found = settings(name)
    rate, updates, penalty, target, _ = STATED[name]
    dropped = 0.1 if found["model"].get("schedule") == "drop" else 1.0
    assert found["model"]["lr"] * dropped == pytest.approx(rate)
    assert found["model"]["momentum"] == 0.9
    assert found["model"]["weight_decay"] == 1e-4
    assert (found["schedule"]["every_n_steps"], found["schedule"]["channels_per_event"]) == (updates, 1)
    assert found["pruning"]["cost_penalty"] == penalty
    assert found["pruning"]["target"] == pytest.approx(target, rel=0.01)
    assert found["criterion"]["positions"] == "mean"
    assert found["pruning"]["normalization"] == "l2"
    assert found["data"]["batch_size"] == (8 if name == "r3dcnn_nvgesture" else 32)


@pytest.mark.parametrize("name", STATED)
def test_an_experiment_leaves_time_to_remove_as_many_maps_as_it_takes(name: str, settings: Callable[..., Any]) -> None:
    found, maps = settings(name), STATED[name][4]
    last = found["schedule"]["start_step"] + maps * found["schedule"]["every_n_steps"]
    assert found["trainer"]["max_steps"] >= last
    if name == "vgg16_imagenet":
        assert found["trainer"]["max_steps"] - last == 5 * (1281167 // 32)


@pytest.mark.parametrize("name", EPOCHS_BEFORE)
def test_the_dense_epochs_are_the_papers(name: str, settings: Callable[..., Any]) -> None:
    (epochs, images), found = EPOCHS_BEFORE[name], settings(name)
    assert found["schedule"]["start_step"] == epochs * (images // found["data"]["batch_size"])
    if found["model"]["schedule"] == "drop":
        assert found["model"]["drop_step"] == found["schedule"]["start_step"]


def narrow(name: str, num_classes: int) -> nn.Module:
    """The named network with the same layers, a sixteenth as wide: the real ones take a minute each."""
    net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    channels = 3
    for layer_name, layer in net.features.named_children():
        if isinstance(layer, nn.Conv2d):
            shape = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding")}
            setattr(net.features, layer_name, nn.Conv2d(channels, layer.out_channels // 16, **shape))
            channels = layer.out_channels // 16
    side = net.avgpool.output_size[0]
    net.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(channels * side * side, 16), nn.ReLU(), nn.Linear(16, num_classes)
    )
    return net


@pytest.fixture
def root(request: pytest.FixtureRequest) -> Path:
    """Made data in the layout that the configuration named by the test's parameter reads."""
    name = request.getfixturevalue("name")
    if name.endswith("birds200"):
        return request.getfixturevalue("make_birds")()
    if name == "r3dcnn_nvgesture":
        return request.getfixturevalue("make_clips")({split: ("push", "swipe", "wave") for split in ("train", "test")})
    return request.getfixturevalue("flowers" if name.endswith("flowers102") else "imagenet")


@pytest.mark.slow
@pytest.mark.parametrize("name", STATED)
def test_an_experiment_runs_on_data_of_its_layout(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pruned: list[TaylorPruning] = []

    class Watched(cli.TaylorCLI):
        def after_fit(self) -> None:
            pruned.extend(c for c in vars(self.trainer)["callbacks"] if isinstance(c, TaylorPruning))

    monkeypatch.setattr("lightning_taylor.cli.lightning_cli.TaylorCLI", Watched)
    monkeypatch.setattr(classifier, "create_model", narrow)
    size = 32 if name == "r3dcnn_nvgesture" else 64
    small = {"trainer.max_steps": 4, "trainer.callbacks.schedule.every_n_steps": 1,
             "trainer.callbacks.schedule.start_step": 1, "trainer.callbacks.measure_latency": False,
             "trainer.accelerator": "cpu", "trainer.default_root_dir": tmp_path / "logs",
             "trainer.enable_progress_bar": False, "data.root": root, "data.size": size, "data.batch_size": 2,
             "data.num_workers": 0, "model.weights": "null"}  # fmt: skip
    if name == "r3dcnn_nvgesture":
        small |= {"model.size": 32, "model.width": 8, "model.features": 16, "model.hidden": 8, "data.clips": 2}
    with pytest.warns(UserWarning, match="target"):
        cli.main(["fit", "--config", name, *(f"--{key}={value}" for key, value in small.items())])
    [pruner] = pruned
    assert pruner.graph is not None
    lost = {g: pruner.graph.dense_sizes[g] - group.size for g, group in pruner.graph.groups.items()}
    assert sum(lost.values()) == 3
    assert lost.pop("net.recurrent", 0) == 0  # `Taylor` has no score for it
    layers = set(WIDTHS) if name == "r3dcnn_nvgesture" else {g for g in lost if "features" in g}
    assert {group.removeprefix("net.") for group in lost} == {layer.removeprefix("net.") for layer in layers}
    assert len(layers) == {"vgg": 13, "ale": 5, "r3d": 8}[name[:3]]


@pytest.mark.slow
def test_missing_data_is_one_line_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(classifier, "create_model", narrow)
    for name, hint in {"vgg16_birds200": "CUB_200_2011.tgz", "alexnet_imagenet": "ILSVRC2012_devkit_t12.tar.gz",
                       "r3dcnn_nvgesture": "train/<class>/<video>/*.png"}.items():  # fmt: skip
        with pytest.raises(SystemExit):
            cli.main(["fit", "--config", name, f"--data.root={tmp_path / 'none'}", "--model.weights=null",
                      "--trainer.accelerator=cpu", "--trainer.logger=false"])  # fmt: skip
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert hint in said
        assert str(tmp_path / "none") in said
