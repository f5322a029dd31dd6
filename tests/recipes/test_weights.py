from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_taylor.recipes.models import create_model, find_head
from lightning_taylor.recipes.weights import load_weights, pretrained_model, read_state_dict

DATA = Path(__file__).parents[2] / "../shared/data"


def save(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    return path


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_state_dict_file_gives_the_network_and_the_classes_it_was_saved_with(tmp_path: Path) -> None:
    saved = create_model("squeezenet1_1", 4).state_dict()
    loaded = pretrained_model("squeezenet1_1", str(save(tmp_path, saved)))
    assert equal(loaded.state_dict(), saved)
    assert find_head(loaded)[1].weight.shape[0] == 4


def test_half_precision_becomes_single_and_counters_stay_integers(tmp_path: Path) -> None:
    half = create_model("digits_cnn", 10).half().state_dict()
    state = read_state_dict(save(tmp_path, half))
    assert {str(t.dtype) for t in state.values()} == {"torch.float32", "torch.int64"}
    assert all(torch.equal(state[name], half[name].to(state[name].dtype)) for name in half)


@pytest.mark.parametrize("enclosed", [False, True])
def test_what_data_parallel_training_adds_to_names_is_taken_off(tmp_path: Path, enclosed: bool) -> None:
    saved = create_model("digits_cnn", 10).state_dict()
    named = {f"module.{name}": tensor for name, tensor in saved.items()}
    path = save(tmp_path, {"state_dict": named, "epoch": 3} if enclosed else named)
    assert equal(read_state_dict(path), saved)


def test_auxiliary_heads_are_left_out(tmp_path: Path) -> None:
    full = torchvision.models.googlenet(num_classes=3, aux_logits=True, init_weights=False)
    loaded = pretrained_model("googlenet", str(save(tmp_path, full.state_dict())))
    assert equal(loaded.state_dict(), {k: v for k, v in full.state_dict().items() if not k.startswith("aux")})


def test_the_weights_of_another_model_are_refused_in_a_few_words(tmp_path: Path) -> None:
    path = save(tmp_path, create_model("resnet34", 3).state_dict())
    with pytest.raises(ValueError, match="these weights are not resnet18's: 96 tensors unknown") as caught:
        pretrained_model("resnet18", str(path))
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_weights_of_a_wider_model_are_refused_by_their_shapes() -> None:
    state = create_model("digits_cnn", 10).state_dict()
    state["stem.0.weight"] = torch.zeros(50, 1, 3, 3)
    with pytest.raises(ValueError, match=r"1 tensors of another shape \(stem.0.weight\)"):
        load_weights("digits_cnn", state)


def test_weights_without_the_head_are_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"not resnet18's: no fc.weight among classifier.weight"):
        load_weights("resnet18", {"classifier.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 1}, torch.zeros(2)], ids=["list", "numbers", "tensor"])
def test_a_file_without_named_tensors_is_refused_by_its_name(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match=r"weights.pt holds no state dict"):
        read_state_dict(save(tmp_path, content))


@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04 cut off"], ids=["empty", "text", "cut"])
def test_a_file_that_torch_cannot_read_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.pt is no file of tensors"):
        read_state_dict(path)


def test_a_missing_file_is_answered_with_the_weights_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"'no.pt'.*torchvision has DEFAULT, IMAGENET1K_V1 for resnet18"):
        pretrained_model("resnet18", "no.pt")
    with pytest.raises(FileNotFoundError, match="torchvision has none for digits_cnn"):
        pretrained_model("digits_cnn", "DEFAULT")


def test_the_name_of_an_enum_is_handed_to_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def get_model(name: str, **options: Any) -> nn.Module:
        seen.update(options, name=name)
        return nn.Identity()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    pretrained_model("googlenet", "DEFAULT")
    assert seen == {"name": "googlenet", "weights": "DEFAULT", "aux_logits": False}


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the pretrained nets of ../shared/data")
def test_the_pretrained_squeezenet_loads_as_it_was_saved() -> None:
    path = DATA / "squeezenet1_1/squeezenet1_1_fp16.pt"
    loaded = pretrained_model("squeezenet1_1", str(path)).state_dict()
    assert equal(loaded, {k: v.float() for k, v in torch.load(path, weights_only=True).items()})
