from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_taylor import Gradual, Taylor, TaylorPruning, load_pruned
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.recipes.clip_classifier import ClipClassifier
from lightning_taylor.recipes.data import ImageData
from lightning_taylor.recipes.r3dcnn import WIDTHS

SMALL: dict[str, Any] = {"width": 4, "features": 24, "hidden": 12, "size": 32, "dropout": 0.0}


class Ramps(ImageData):
    """Two clips that grow brighter from the left, the right, the top or the bottom, in noise."""

    num_classes = 4  # type: ignore[assignment]

    def __init__(self, videos: int = 32) -> None:
        super().__init__(batch_size=8, num_workers=0)
        generator = torch.Generator().manual_seed(0)
        label = torch.arange(videos) % 4
        ramp_HW = torch.linspace(-1, 1, 32).expand(32, 32)
        picture_NHW = torch.stack([torch.rot90(ramp_HW, int(k)) for k in label])
        noise = 0.3 * torch.randn(videos, 2, 1, 8, 32, 32, generator=generator)
        self.data = TensorDataset(picture_NHW[:, None, None, None] + noise, label)

    def train_set(self, augment: bool) -> Dataset:
        return self.data

    def val_set(self) -> Dataset:
        return self.data

    test_set = val_set


def trainer(tmp_path: Path, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(default_root_dir=tmp_path, **{**defaults, **options})


def test_the_number_of_classes_comes_from_the_data(tmp_path: Path) -> None:
    module = ClipClassifier(**SMALL)
    run = trainer(tmp_path, limit_train_batches=1)
    run.fit(module, Ramps())
    assert module.net.head.out_features == module.hparams["num_classes"] == 4
    assert set(run.callback_metrics) == {"train_loss", "val_loss", "val_acc"}
    with pytest.raises(ValueError, match="the network makes 3 classes and the data has 4"):
        trainer(tmp_path).fit(ClipClassifier(num_classes=3, **SMALL), Ramps())


def test_cross_entropy_is_the_mean_over_all_clips() -> None:
    module = ClipClassifier(num_classes=2, **SMALL)
    logit = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    loss = module._loss(logit, torch.tensor([1]))
    assert float(loss) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_ctc_adds_up_every_way_to_say_the_label_once() -> None:
    """Of two clips the first, the second or both say it; the last class is: nothing yet."""
    module = ClipClassifier(num_classes=2, loss="ctc", **SMALL)
    assert module.net.head.out_features == 3
    probability = torch.tensor([[[0.6, 0.1, 0.3], [0.3, 0.1, 0.6]]])
    loss = module._loss(probability.log(), torch.tensor([0]))
    assert float(loss) == pytest.approx(-math.log(0.6 * 0.6 + 0.3 * 0.3 + 0.6 * 0.3))


def test_a_video_is_what_its_clips_say_on_average_and_never_nothing() -> None:
    module = ClipClassifier(num_classes=2, loss="ctc", **SMALL)
    probability = torch.tensor([[[0.2, 0.1, 0.7], [0.2, 0.5, 0.3]]])
    assert module._scores(probability.log())[0].tolist() == pytest.approx([0.2, 0.3])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "ctc"])
def test_it_learns_by_either_loss(tmp_path: Path, loss: Any) -> None:
    module, data = ClipClassifier(loss=loss, lr=0.003, **SMALL), Ramps()
    run = trainer(tmp_path, max_epochs=30)  # by twelve only some starts have learnt it, on some processors
    run.fit(module, data)
    assert run.callback_metrics["val_acc"] > 0.9
    predicted = torch.cat(run.predict(module, DataLoader(data.data, batch_size=8)))  # pyright: ignore
    assert (predicted == data.data.tensors[1]).float().mean() > 0.9


def test_weights_come_from_a_file_and_are_not_asked_of_a_checkpoint(tmp_path: Path) -> None:
    source = ClipClassifier(num_classes=7, **SMALL)
    torch.save(source.net.state_dict(), tmp_path / "c3d.pt")
    module = ClipClassifier(str(tmp_path / "c3d.pt"), num_classes=4, **SMALL)
    assert torch.equal(module.net.conv3b.weight, source.net.conv3b.weight)
    assert "weights" not in module.hparams


@pytest.mark.slow
def test_the_headline_twelve_times_fewer_flops_in_an_ordinary_fit(tmp_path: Path) -> None:
    """The paper's R3DCNN goes from 37.8 to 3.0 GFLOPs; here it is narrower and its pictures are smaller."""
    module, data = ClipClassifier(lr=0.005, **{**SMALL, "width": 8, "features": 48}), Ramps()
    pruner = TaylorPruning(
        1 / 12.6,
        Gradual(every_n_steps=4, start_step=40, end_step=80),
        Taylor(positions="mean"),
        ignore=["fc6"],
        measure_latency=False,
    )
    run = trainer(tmp_path, max_epochs=30, callbacks=[pruner], gradient_clip_val=1.0)
    run.fit(module, data)
    assert pruner.reached
    assert pruner.graph is not None
    cost = CostModel(pruner.graph)
    assert 1 / 12.6 - 0.01 < cost.now.flops / cost.dense.flops <= 1 / 12.6
    assert all(module.net.get_submodule(n).out_channels < 8 * times for n, times in WIDTHS.items())
    assert run.callback_metrics["val_acc"] > 0.9
    # A clip's own shape is what the whole pruned network still takes, and a checkpoint brings it back.
    run.save_checkpoint(tmp_path / "pruned.ckpt")
    again = load_pruned(ClipClassifier, tmp_path / "pruned.ckpt").eval()
    video: Tensor = data.data.tensors[0][:2]
    torch.testing.assert_close(again(video), module.eval()(video))
