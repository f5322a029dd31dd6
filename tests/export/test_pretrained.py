"""A pruned network of Hugging Face is saved and read back by ``save_pretrained`` and ``from_pretrained``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from export.nets import halved
from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.export import ExportError, PrunedPretrainedMixin


class Config:
    width: int

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class PreTrainedModel(nn.Module):
    """As in transformers: a config, and a network that is built by it where no tensor has values."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(vars(self.config)))
        torch.save(self.state_dict(), folder / "model.pt")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Any:
        with torch.device("meta"):
            model = cls(Config(**json.loads((folder / "config.json").read_text())))
        model.load_state_dict(torch.load(folder / "model.pt", weights_only=True), assign=True)
        return model.eval()


class Dense(PreTrainedModel):
    """One width for all layers; the code reads what it notes of them, once as a list and once as a tuple."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width = config.width
        self.stem, self.norm = nn.Conv2d(3, 2 * width, 3), nn.BatchNorm2d(2 * width)
        self.left, self.right = nn.Conv2d(width, width, 1), nn.Conv2d(width, 4, 1)
        self.sizes, self.maps = [width, width], [(width, 4)]
        self.tied = self.left

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(self.stem(x)).relu().split(self.sizes, 1)
        return self.right(self.left(left).relu()) + self.right(right)


class Net(PrunedPretrainedMixin, Dense):
    pass


X = torch.rand(2, 3, 8, 8)


def test_a_pruned_network_is_read_back_with_its_widths(tmp_path: Path) -> None:
    net: Any = halved(Net(Config(width=8)).eval(), X)
    assert net.stem.out_channels < 16
    net.save_pretrained(tmp_path / "pruned")
    loaded = Net.from_pretrained(tmp_path / "pruned")
    assert torch.equal(loaded(X), net(X))
    assert (loaded.sizes, loaded.maps) == (net.sizes, net.maps)
    assert loaded.left is loaded.tied
    assert repr(loaded) == repr(net)


def test_a_folder_from_before_the_pruning_is_read_as_ever(tmp_path: Path) -> None:
    dense = Dense(Config(width=8)).eval()
    dense.save_pretrained(tmp_path / "dense")
    assert torch.equal(Net.from_pretrained(tmp_path / "dense")(X), dense(X))


def test_a_network_that_was_pruned_twice_is_saved_as_it_is_now(tmp_path: Path) -> None:
    net: Any = halved(Net(Config(width=8)).eval(), X)
    net.save_pretrained(tmp_path / "once")
    again: Any = halved(Net.from_pretrained(tmp_path / "once"), X)
    again.save_pretrained(tmp_path / "twice")
    loaded = Net.from_pretrained(tmp_path / "twice")
    assert loaded.stem.out_channels == again.stem.out_channels < net.stem.out_channels
    assert torch.equal(loaded(X), again(X))


def test_a_network_that_was_built_without_it_gets_it_by_its_class(tmp_path: Path) -> None:
    net: Any = halved(Dense(Config(width=8)).eval(), X)
    net.__class__ = Net
    net.save_pretrained(tmp_path / "pruned")
    assert torch.equal(Net.from_pretrained(tmp_path / "pruned")(X), net(X))


def test_heads_that_no_config_can_tell_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Attending(PrunedPretrainedMixin, PreTrainedModel):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.net = zoo.NETS["multihead"][0]()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    x = zoo.build("multihead")[1].float()
    net: Any = halved(Attending(Config()).eval(), x)
    with pytest.raises(ExportError, match="lost attention heads"):
        net.save_pretrained(tmp_path / "pruned")
    assert not list(tmp_path.iterdir())


def vit(transformers: Any) -> tuple[type, Any, int]:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    return transformers.ViTForImageClassification, config, 32


def resnet(transformers: Any) -> tuple[type, Any, int]:
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48], depths=[2, 2, 2], layer_type="basic"
    )
    return transformers.ResNetForImageClassification, config, 32


def segformer(transformers: Any) -> tuple[type, Any, int]:
    config = transformers.SegformerConfig(
        hidden_sizes=[16, 32, 32, 64], depths=[1] * 4, num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32
    )
    return transformers.SegformerForSemanticSegmentation, config, 64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [vit, resnet, segformer], ids=lambda make: make.__name__)
def test_hugging_faces_own_networks_give_the_same_when_they_are_read_back(make: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base, config, side = make(transformers)
    cls: Any = type("Pruned", (PrunedPretrainedMixin, base), {})
    net, x = cls(config).eval(), torch.rand(2, 3, side, side)
    graph = trace_channels(net, x, allow_inexact_norms=True)
    prune_channels(net, graph, graph.sample(0.4, torch.Generator().manual_seed(0)))
    assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in base(config).parameters())
    net.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert torch.equal(loaded(x).logits, net(x).logits)
    assert loaded.state_dict().keys() == net.state_dict().keys()
