from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
import zoo
from torch import nn

from export.nets import Classes, Wrapper, halved
from lightning_taylor.export.state_dict import LOADER, export_state_dict
from lightning_taylor.export.verified_write import ExportError


def test_the_weights_are_an_ordinary_state_dict_and_the_record_names_the_builder(tmp_path: Path) -> None:
    model = halved(torchvision.models.squeezenet1_1(num_classes=5), torch.rand(1, 3, 32, 32))
    exported = export_state_dict(model, torch.rand(2, 3, 32, 32), tmp_path / "net.pt")
    state, record = torch.load(exported.path, weights_only=True), json.loads((tmp_path / "net.json").read_text())
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert record["builder"] == "torchvision.models.get_model"
    assert record["arguments"] == {"name": "squeezenet1_1", "weights": None}
    assert record["layers"]["classifier.1"]["out_channels"] == 5
    assert record["tensors"]["features.0.weight"] == list(model.features[0].weight.shape)
    assert [file.name for file in exported.files] == ["net.pt", "net.json", "load_net.py"]
    assert exported.bytes == sum(file.stat().st_size for file in exported.files)


def test_the_docstring_shows_the_loader_as_it_is_written() -> None:
    shown = [line.strip() for line in str(export_state_dict.__doc__).splitlines()]
    lines = [line.strip() for line in LOADER.split("def load")[1].splitlines()[1:] if line.strip()]
    assert len(lines) <= 12
    start = shown.index(lines[0])
    assert shown[start : start + len(lines)] == lines


LOSE_HEADS = {"multihead", "windows"}


@pytest.mark.parametrize("name", sorted(zoo.NETS.keys() - LOSE_HEADS))
def test_a_users_own_network_is_rebuilt_from_an_import_path(name: str, tmp_path: Path) -> None:
    model, x = zoo.build(name)
    built = {"builder": "export.test_state_dict.dense_net", "arguments": {"name": name}}
    assert export_state_dict(halved(model, x), x, tmp_path / "net.pt", **built).max_difference == 0


@pytest.mark.parametrize("name", sorted(LOSE_HEADS & zoo.NETS.keys()))
def test_an_attention_that_lost_heads_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    model, x = zoo.build(name)
    with pytest.raises(ExportError, match=r"lost attention heads and runs Pruned\w+ of this package.* use export_onnx"):
        export_state_dict(halved(model, x), x, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


def dense_net(name: str) -> nn.Module:
    return zoo.NETS[name][0]().double()


def test_without_a_builder_the_loader_takes_the_dense_network(tmp_path: Path) -> None:
    model, x = zoo.build("vgg")
    model = halved(model, x)
    exported = export_state_dict(model, x, tmp_path / "epoch=1.pt")
    names: dict[str, object] = {"__file__": str(exported.files[2])}
    assert exported.files[2].name == "load_epoch_1.py"
    exec(exported.files[2].read_text(), names)
    loaded = names["load"](zoo.vgg().double())  # type: ignore[operator]
    assert torch.equal(loaded(x), model.eval()(x))
    assert "importlib" not in exported.files[2].read_text()


class Normalised(nn.Module):
    """Keeps its input's mean, which no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.3), persistent=False)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x - self.mean)


def test_buffers_that_no_state_dict_holds_are_those_of_the_class(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    exported = export_state_dict(halved(Normalised(), x), x, tmp_path / "net.pt")
    assert exported.max_difference == 0


@pytest.mark.slow
def test_the_size_of_a_family_need_not_be_known(tmp_path: Path) -> None:
    model = halved(torchvision.models.mobilenet_v3_small(width_mult=0.5, num_classes=2), torch.rand(1, 3, 32, 32))
    exported = export_state_dict(model, torch.rand(1, 3, 32, 32), tmp_path / "net.pt")
    assert json.loads((tmp_path / "net.json").read_text())["arguments"]["name"].startswith("mobilenet_v3")
    assert exported.max_difference == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = torchvision.models.squeezenet1_1(num_classes=5).to(dtype), torch.rand(1, 3, 32, 32, dtype=dtype)
    assert export_state_dict(model, x, tmp_path / "net.pt").max_difference == 0
    assert torch.load(tmp_path / "net.pt", weights_only=True)["features.0.weight"].dtype is dtype


def test_a_builder_of_another_network_leaves_no_file(tmp_path: Path) -> None:
    model, x = torchvision.models.squeezenet1_1(), torch.rand(1, 3, 32, 32)
    with pytest.raises(ExportError, match=r"net.pt was written and cannot be run"):
        export_state_dict(model, x, tmp_path / "net.pt", builder="resnet18")
    with pytest.raises(ExportError, match=r"net.pt differs from the model by"):
        export_state_dict(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), x, tmp_path / "net.pt", builder="export.test_state_dict.plain"
        )
    assert not list(tmp_path.iterdir())


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())


def test_what_cannot_be_written_is_refused_with_the_value(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 6, 6)
    with pytest.raises(ValueError, match=r"arguments=\{'width': 8\} are for a builder"):
        export_state_dict(Classes(), x, tmp_path / "net.pt", arguments={"width": 8})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        export_state_dict(Classes(), x, tmp_path / "net.pt", builder="a.b", arguments={"width": x})
    with pytest.raises(ValueError, match=r"net.json is for the tensors"):
        export_state_dict(Classes(), x, tmp_path / "net.json")


def test_the_model_and_the_random_numbers_stay_as_they_are(tmp_path: Path) -> None:
    model = Wrapper(torchvision.models.squeezenet1_1(num_classes=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    export_state_dict(model.net, torch.rand(1, 3, 32, 32, generator=torch.Generator()), tmp_path / "net.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.net.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
