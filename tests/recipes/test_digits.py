from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_taylor.recipes.digits import Digits


def whole(digits: Digits, training: bool) -> tuple[Tensor, Tensor]:
    loader = digits.plain_train_dataloader() if training else digits.test_dataloader()
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def prepared(**options: int) -> Digits:
    digits = Digits(**options)
    digits.setup("fit")
    return digits


@pytest.mark.slow
def test_the_split_is_the_same_in_every_run_whatever_the_seed() -> None:
    first = whole(prepared(), training=True)
    torch.manual_seed(123)
    second = whole(prepared(), training=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_class_has_the_same_share_of_both_parts() -> None:
    digits = prepared()
    train, test = (torch.bincount(whole(digits, training)[1]) for training in (True, False))
    assert (int(train.sum()), int(test.sum())) == (1347, 450)
    assert float((train / 1347 - test / 450).abs().max()) < 0.002


def test_no_digit_is_in_both_parts() -> None:
    digits = prepared()
    train, test = ({tuple(row) for row in whole(digits, t)[0].flatten(1).tolist()} for t in (True, False))
    assert not train & test


def test_pixels_lie_between_zero_and_one_and_labels_are_integers() -> None:
    image, label = whole(prepared(), training=False)
    assert image.dtype == torch.float32
    assert label.dtype == torch.int64
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (5, 1)])
def test_a_network_may_want_other_sizes_and_colours(size: int, channels: int) -> None:
    image, _ = whole(prepared(size=size, channels=channels), training=False)
    assert image.shape == (450, channels, size, size)
    assert torch.equal(image[:, 0], image[:, -1])
    dense = whole(prepared(), training=False)[0]
    torch.testing.assert_close(image.mean((1, 2, 3)), dense.mean((1, 2, 3)), atol=0.15, rtol=0)


def test_training_shuffles_and_leaves_out_only_an_incomplete_batch() -> None:
    digits = prepared(batch_size=64)
    labels = [label for _, label in digits.train_dataloader()]
    assert [len(label) for label in labels] == [64] * 21
    assert not torch.equal(torch.cat(labels), whole(digits, training=True)[1][: 21 * 64])


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    assert [len(label) for _, label in prepared(batch_size=5000).train_dataloader()] == [1347]


def test_validation_test_and_prediction_see_the_same_digits() -> None:
    digits = prepared()
    loaders = (digits.val_dataloader(), digits.test_dataloader(), digits.predict_dataloader())
    seen = [torch.cat([label for _, label in loader]) for loader in loaders]
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
