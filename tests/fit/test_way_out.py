"""An error that says that too little can go names the option that would help, if one does."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from fit.boring import Boring
from fit.harness import fit, pruning
from lightning_taylor.errors import NothingToPruneError, TargetUnreachableError
from lightning_taylor.trace.freeing import options_that_may_free


class Normed(nn.Module):
    """Everything passes a norm over the channels; ``beside`` has channels that need no option."""

    def __init__(self, beside: int = 0) -> None:
        super().__init__()
        self.stem, self.norm, self.mix = nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.Conv2d(16, 8, 3)
        self.norm2, self.head = nn.GroupNorm(1, 8), nn.Linear(8, 2)
        self.beside = nn.Sequential(nn.Linear(8, beside), nn.ReLU(), nn.Linear(beside, 8)) if beside else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.mix(self.norm(self.stem(x)).relu())).relu()
        return self.head(self.beside(x.mean((2, 3))))


def test_an_error_names_the_option_that_would_free_layers_and_how_far_it_goes(tmp_path: Path) -> None:
    for net, kind in ((Normed(), NothingToPruneError), (Normed(beside=4), TargetUnreachableError)):
        with pytest.raises(kind) as caught:
            fit(Boring(net), pruning(), tmp_path)
        assert "What would help: allow_inexact_norms=True frees net.stem, net.mix, and allows flops=0.0" in str(
            caught.value
        )
    fit(Boring(Normed()), pruning(allow_inexact_norms=True), tmp_path)


def test_an_option_that_frees_nothing_is_not_named(tmp_path: Path) -> None:
    """It is set already, or the channels have to stay for a second reason."""
    net = nn.Sequential(nn.Conv2d(3, 2, 12), nn.GroupNorm(1, 2))
    for options in ({}, {"allow_inexact_norms": True}):
        with pytest.raises(NothingToPruneError) as caught:
            fit(Boring(net), pruning(**options), tmp_path)
        assert "What would help" not in str(caught.value)


def test_options_are_named_by_reasons_the_most_frequent_first() -> None:
    norm = "its statistics run over the channels (op in norm), so removing one changes the others"
    product = "contracted with another activation by matmul"
    assert options_that_may_free([product, norm, norm, "reaches the output"]) == [
        ("allow_inexact_norms", True),
        ("attention_heads", "spread"),
    ]
    assert options_that_may_free([]) == []
