"""A fit takes from grouped convolutions what it was told to, and its checkpoint keeps to that."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torchvision.models.resnet import Bottleneck

from fit.boring import Boring, kept_trainer
from fit.resuming import StatefulLoader, differences
from lightning_taylor import Gradual, TaylorPruning, load_pruned
from lightning_taylor.fit.options import changed_settings

KEPT, STEPS = 3, 6


class Net(Boring):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=2, groups=4, width_per_group=8)
        )


def fit(folder: Path, choice: Any, ckpt: Path | None = None) -> tuple[Net, TaylorPruning]:
    # Only what lies inside the blocks is left to go.
    inside = {"ignore": ["net.conv1", "*.conv3", "*.downsample.0"], "conv_groups": choice}
    pruning = TaylorPruning(0.85, Gradual(2, 0, 4), measure_latency=False, **inside)
    keep = ModelCheckpoint(folder, filename="kept", every_n_train_steps=KEPT, save_top_k=-1)
    trainer = kept_trainer(folder, [pruning, keep], STEPS)
    model = Net()
    trainer.fit(model, StatefulLoader(STEPS, 4), ckpt_path=ckpt, weights_only=True)
    return model, pruning


def grouped(model: nn.Module) -> list[tuple[int, int]]:
    """Of each convolution between two others, its groups and the channels that each of them reads."""
    blocks = [m for m in model.modules() if isinstance(m, Bottleneck)]
    return [(block.conv2.groups, block.conv2.in_channels // block.conv2.groups) for block in blocks]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
@pytest.mark.parametrize(("choice", "other"), [("whole", "spread"), ("spread", "whole")])
def test_a_fit_takes_what_was_chosen_and_goes_on_so_under_another_choice(
    choice: str, other: str, tmp_path: Path
) -> None:
    dense = grouped(Net())
    straight, pruning = fit(tmp_path / "straight", choice)
    assert pruning.reached
    stays = 1 if choice == "whole" else 0
    assert [block[stays] for block in grouped(straight)] == [block[stays] for block in dense]
    assert sum(block[1 - stays] for block in grouped(straight)) < sum(block[1 - stays] for block in dense)

    kept = tmp_path / "straight" / "kept.ckpt"
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    with pytest.warns(UserWarning, match=f"but for conv_groups: .* was found with conv_groups='{choice}' and travels"):
        resumed, _ = fit(tmp_path / "resumed", other, kept)
    assert differences(dict(straight.state_dict()), dict(resumed.state_dict())) == []
    assert grouped(resumed) == grouped(straight)
    loaded = load_pruned(Net, kept).eval()
    assert grouped(loaded) != dense
    assert [block[stays] for block in grouped(loaded)] == [block[stays] for block in dense]
    assert loaded.net(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_a_checkpoint_from_before_the_trace_leaves_the_choice_open() -> None:
    saved, now = {"conv_groups": "'whole'", "round_to": "1"}, {"conv_groups": "'spread'", "round_to": "1"}
    assert changed_settings(saved, now, traced=False) == (
        "the fit is resumed with other settings than its checkpoint's: conv_groups='spread', which was 'whole'. "
        "The new ones hold"
    )
    assert changed_settings(saved, saved, traced=True) is None
