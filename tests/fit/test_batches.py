"""Whatever the batches look like and wherever they come from; whoever calls which part of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from zoo import conv

from fit.boring import Boring, loader
from fit.harness import assert_close, fit, frozen_rate, hooks_on, lands, pruning, scores_of
from lightning_taylor import Gradual, Iterative, OneShot

EVENTS = Gradual(every_n_steps=3, start_step=2, end_step=14)


class Shaped(Dataset[Any]):
    """The usual examples, each in another shape."""

    def __init__(self, shape: Callable[[Tensor, Tensor], Any]) -> None:
        self.x, self.y = loader().dataset.tensors  # type: ignore[attr-defined]
        self.shape = shape

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.shape(self.x[i], self.y[i])


class Unpacking(Boring):
    """Finds image and label in a batch of any nesting."""

    def __init__(self, unpack: Callable[[Any], tuple[Tensor, Tensor]], rate: float = 1e-3) -> None:
        super().__init__(zoo.OptionA(), "AdamW" if rate else "SGD", lr=rate)
        self.unpack = unpack

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(self.unpack(batch), batch_idx)


SHAPES: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "dict": (lambda x, y: {"image": x, "label": y}, lambda b: (b["image"], b["label"])),
    "nested": (lambda x, y: [{"views": [x, x]}, (y, [y])], lambda b: (b[0]["views"][0], b[1][1][0])),
    "names first": (lambda x, y: {"name": "a", "image": x, "label": y}, lambda b: (b["image"], b["label"])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_nesting_of_a_batch_does_not_matter(name: str, tmp_path: Path) -> None:
    shape, unpack = SHAPES[name]
    data = DataLoader(Shaped(shape), 8)
    lands(Unpacking(unpack), tmp_path, data)
    expected = scores_of(frozen_rate, tmp_path)
    assert_close(scores_of(lambda: Unpacking(unpack, rate=0.0), tmp_path, data), expected)


@pytest.mark.slow
def test_a_smaller_last_batch_counts_by_its_examples(tmp_path: Path) -> None:
    """Sixty examples in batches of eight or of four are the same sixty."""
    expected = scores_of(frozen_rate, tmp_path, loader(n=60, batch=4), step=15, max_epochs=2)
    # The first four of the first eight were traced on in one fit and scored in the other.
    found = scores_of(frozen_rate, tmp_path, loader(n=60, batch=8), step=8, max_epochs=2)
    assert_close(found, expected, 0.1)
    lands(Boring(zoo.Residual()), tmp_path, loader(n=60, batch=8))


class Endless(IterableDataset[Any]):
    """A stream that does not say how long it is."""

    def __init__(self, length: int = 64) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        x, y = loader().dataset.tensors  # type: ignore[attr-defined]
        for i in range(self.length):
            yield x[i % 64], y[i % 64]


def test_a_stream_without_a_length_needs_a_schedule(tmp_path: Path) -> None:
    module = Boring(zoo.Residual())
    with pytest.raises(ValueError, match=r"the fit's length is unknown .* pass schedule=Gradual"):
        fit(module, pruning(), tmp_path, DataLoader(Endless(), 8))
    assert hooks_on(module) == 0
    lands(module, tmp_path, DataLoader(Endless(), 8), pruner=pruning(schedule=EVENTS))


def test_a_stream_with_a_number_of_steps_needs_none(tmp_path: Path) -> None:
    lands(Boring(zoo.Residual()), tmp_path, DataLoader(Endless(), 8), max_epochs=-1, max_steps=20)


@pytest.mark.slow
def test_a_fit_without_an_end_needs_a_schedule(tmp_path: Path) -> None:
    class Stops(Boring):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.global_step >= 20 else None

        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = self.global_step >= 20

    with pytest.raises(ValueError, match="the fit's length is unknown"):
        fit(Stops(zoo.Residual()), pruning(), tmp_path, max_epochs=-1)
    for schedule in (EVENTS, Iterative(1, 4), OneShot(5)):
        lands(Stops(zoo.Residual()), tmp_path, pruner=pruning(schedule=schedule), max_epochs=-1)


class TwoLoaders(Boring):
    """One step on batches of two loaders."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(
            (super(TwoLoaders, self).training_step(part, batch_idx) for part in batch.values() if part is not None),
            torch.tensor(0.0),
        )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
def test_several_loaders_at_once(mode: Any, tmp_path: Path) -> None:
    both = CombinedLoader({"a": loader(), "b": loader(n=40, batch=5, seed=1)}, mode)
    lands(TwoLoaders(zoo.Residual()), tmp_path, both)


class Parts(Boring):
    """The training step calls encoder and decoder one by one; there is no ``forward``."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.encoder = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6, stride=2), nn.ReLU())
        self.decoder = nn.Sequential(nn.ConvTranspose2d(6, 5, 2, stride=2), nn.ReLU(), conv(5, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])


def test_parts_that_the_training_step_calls_one_by_one_are_pruned_inside(tmp_path: Path) -> None:
    module = Parts()
    lands(module, tmp_path, pruner=pruning(target=0.6))
    assert module.encoder[0].weight.shape[0] < 8 or module.decoder[0].weight.shape[1] < 5
    # What goes from one part to the other is inside of the step.
    assert module.encoder[2].weight.shape[0] == module.decoder[0].weight.shape[0] < 6


class Whole(Boring):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("shape", [(1, 3, 12, 12), (4, 3, 20, 16)])
def test_the_example_input_array_of_the_module_is_traced_before_the_first_batch(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    module = Whole(zoo.Residual())
    module.example_input_array = torch.randn(shape)
    lands(module, tmp_path, pruner=pruning(schedule=OneShot(1)))


@pytest.mark.slow
def test_only_an_event_right_after_the_first_batch_has_that_batch_scored(tmp_path: Path) -> None:
    """Any other is traced with the step that the first batch makes, whatever example the module brings."""

    def traced() -> Boring:
        module = Whole(zoo.OptionA(), "SGD", lr=0.0)
        module.example_input_array = torch.randn(1, 3, 12, 12)
        return module

    assert_close(scores_of(traced, tmp_path, step=8), scores_of(frozen_rate, tmp_path, step=8))
    first, second = scores_of(traced, tmp_path, step=1), scores_of(frozen_rate, tmp_path, step=2)
    assert any(not torch.allclose(first[name], second[name]) for name in first)
