from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_taylor.recipes import classifier
from lightning_taylor.recipes.classifier import ImageClassifier, cosine_with_warmup, drop_with_warmup
from lightning_taylor.recipes.data import ImageData
from lightning_taylor.recipes.models import DigitsCNN


class Small(nn.Module):
    """In place of a torchvision network, which would make every test here ten times as long."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class Stripes(ImageData):
    """Three classes of brightness; ``plain`` counts how often the set is read without augmentation."""

    num_classes = 3  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(batch_size=10, num_workers=0)
        label = torch.arange(30) % 3
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(30, 1, 5, 5, generator=generator) * 0.1 + label.view(-1, 1, 1, 1)
        self.plain, self.data = 0, TensorDataset(image, label)

    def train_set(self, augment: bool) -> Dataset:
        self.plain += not augment
        return self.data

    def val_set(self) -> Dataset:
        return self.data

    test_set = val_set


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "create_model", lambda name, num_classes: Small(num_classes))


def pretrained_for(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    net = Small(classes)
    monkeypatch.setattr(classifier, "pretrained_model", lambda name, weights: net)


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


def test_the_number_of_classes_comes_from_the_data_unless_it_is_given(tmp_path: Path) -> None:
    module = ImageClassifier()
    trainer(tmp_path).fit(module, Stripes())
    assert module.num_classes == module.hparams["num_classes"] == 3
    assert ImageClassifier(num_classes=7).net(torch.zeros(2, 1, 5, 5)).shape == (2, 7)


def test_another_number_of_classes_than_the_datas_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="makes 4 classes and the data has 3: leave num_classes out, or give"):
        trainer(tmp_path).fit(ImageClassifier(num_classes=4), Stripes())


def test_data_that_does_not_know_its_classes_asks_for_their_number(tmp_path: Path) -> None:
    loader = DataLoader(Stripes().data, batch_size=10)
    with pytest.raises(ValueError, match="num_classes is None and the data module has no num_classes"):
        trainer(tmp_path).fit(ImageClassifier(), loader, loader)
    trainer(tmp_path).fit(ImageClassifier(num_classes=3), loader, loader)


def test_a_typo_in_the_models_name_is_found_before_there_is_data() -> None:
    with pytest.raises(ValueError, match="no model is called 'resnt18'; the nearest names are resnet18"):
        ImageClassifier("resnt18")


def test_a_head_for_other_classes_is_fitted_once_on_plain_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained_for(5, monkeypatch)
    module, data = ImageClassifier(weights="some", optimizer="sgd", lr=0.0), Stripes()
    run = trainer(tmp_path)
    run.fit(module, data)
    assert module.net.fc.out_features == 3  # type: ignore[union-attr]
    assert float(run.callback_metrics["val_acc"]) > 0.95
    assert data.plain == 1
    assert not module.head_is_new


def test_a_head_with_the_right_classes_stays_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained_for(3, monkeypatch)
    module, data = ImageClassifier(weights="some", optimizer="sgd", lr=0.0, weight_decay=0.0), Stripes()
    module.trainer = trainer(tmp_path)
    module.trainer.fit(module, data)
    torch.manual_seed(3)
    assert torch.equal(module.net.fc.weight, Small(3).fc.weight)  # type: ignore[union-attr]
    assert data.plain == 0


def test_fitting_a_head_does_not_move_the_random_numbers_of_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noted(L.Callback):
        seen: list[Tensor]

        def __init__(self) -> None:
            self.seen = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append(batch[1])

    orders = []
    for classes in (3, 5):
        pretrained_for(classes, monkeypatch)
        module, noted = ImageClassifier(weights="some"), Noted()
        # A new head takes random numbers when it is made; the fit's own come after that.
        monkeypatch.setattr(module, "on_train_start", lambda: torch.manual_seed(1))
        trainer(tmp_path, callbacks=[noted]).fit(module, Stripes())
        orders.append(torch.cat(noted.seen))
    assert torch.equal(*orders)


def test_a_checkpoint_rebuilds_the_network_without_the_weights_file_or_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained_for(5, monkeypatch)
    module, run = ImageClassifier(weights="gone.pt", lr=0.01), trainer(tmp_path)
    run.fit(module, Stripes())
    run.save_checkpoint(tmp_path / "fit.ckpt")
    monkeypatch.setattr(classifier, "pretrained_model", None)
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "fit.ckpt", weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    assert "weights" not in loaded.hparams
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert not loaded.head_is_new


def test_a_resumed_fit_keeps_the_head_of_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained_for(5, monkeypatch)
    run = trainer(tmp_path)
    run.fit(ImageClassifier(weights="some"), Stripes())
    run.save_checkpoint(tmp_path / "fit.ckpt")
    data = Stripes()
    trainer(tmp_path, max_epochs=2).fit(ImageClassifier(weights="some"), data, ckpt_path=str(tmp_path / "fit.ckpt"))
    assert data.plain == 0


def test_the_accuracy_that_is_logged_is_the_share_of_right_answers(tmp_path: Path) -> None:
    module, data = ImageClassifier(lr=0.05), Stripes()
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module, data)
    right = [module.eval()(image).argmax(1) == label for image, label in data.val_dataloader()]
    predicted = run.predict(module, data)
    assert predicted is not None
    share = float(torch.cat(right).float().mean())
    assert run.validate(module, data, verbose=False)[0]["val_acc"] == pytest.approx(share)
    assert run.test(module, data, verbose=False)[0]["test_acc"] == pytest.approx(share)
    assert float((torch.cat(predicted) == data.data.tensors[1]).float().mean()) == pytest.approx(share)  # type: ignore[arg-type]


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_learning_rate_ends_at_zero_or_where_it_was_or_at_a_tenth(
    tmp_path: Path, optimizer: Any, kind: type[torch.optim.Optimizer]
) -> None:
    for schedule, last in (("cosine", 0.0), ("constant", 0.02), ("drop", 0.002)):
        run = trainer(tmp_path, max_epochs=2)
        module = ImageClassifier(optimizer=optimizer, schedule=schedule, drop_step=4, lr=0.02)  # type: ignore[arg-type]
        run.fit(module, Stripes())
        assert type(run.optimizers[0]) is kind
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(last)


def test_a_class_among_the_first_few_counts_as_right_if_asked_to(tmp_path: Path) -> None:
    accuracies = []
    for k in (1, 2, 3):
        module = ImageClassifier(lr=0.0, top_k=k)
        torch.manual_seed(0)
        module._build(3)
        accuracies.append(trainer(tmp_path).validate(module, Stripes(), verbose=False)[0]["val_acc"])
    assert accuracies == sorted(accuracies)
    assert accuracies[0] < accuracies[2] == 1.0


def test_the_rate_falls_at_its_step_and_not_before() -> None:
    assert [drop_with_warmup(step, warmup=2, drop=4) for step in range(6)] == [0.5, 1.0, 1.0, 1.0, 0.1, 0.1]


def test_a_drop_needs_its_step() -> None:
    with pytest.raises(ValueError, match="schedule='drop' needs the step at which the rate drops"):
        ImageClassifier(schedule="drop")


def test_a_cosine_without_an_end_asks_for_one(tmp_path: Path) -> None:
    module = ImageClassifier()
    with pytest.raises(ValueError, match="schedule='cosine' needs the length of the fit: give max_epochs or max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(module, Stripes())


@given(st.integers(0, 50), st.integers(0, 30), st.integers(1, 100))
def test_the_learning_rate_rises_then_falls_and_never_leaves_its_range(step: int, warmup: int, total: int) -> None:
    now, then = (cosine_with_warmup(s, warmup, total) for s in (step, step + 1))
    assert 0.0 <= now <= 1.0
    assert then >= now if step + 1 < warmup else then <= now or step < warmup
    assert cosine_with_warmup(step, warmup, math.inf) == (1.0 if step >= warmup else now)


def test_the_small_network_learns_digits_of_one_colour() -> None:
    assert DigitsCNN(4, in_channels=3)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
