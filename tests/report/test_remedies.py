"""What is advised works: the advice that is given for a frozen layer, followed, makes its channels removable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo_heads import NonLocal

from lightning_taylor import trace_channels
from lightning_taylor.report.inspection import inspect_model
from lightning_taylor.report.remedies import remedy_for


class Net(nn.Module):
    """A stem, something in the middle, and classes."""

    def __init__(self, middle: Callable[[Tensor], Tensor], width: int = 8, out: int = 8) -> None:
        super().__init__()
        self.stem, self.middle, self.mix = nn.Conv2d(3, width, 3), middle, nn.Conv2d(out, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.middle(self.stem(x))).amax((2, 3)))


def gated(x: Tensor) -> Tensor:
    one, other = x.split([5, 3], 1)
    return torch.cat([one.relu(), other.tanh()], 1)


def evenly(x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    return torch.cat([one.relu(), other.tanh()], 1)


ADVISED: dict[str, tuple[Callable[[], Callable[..., Tensor]], Callable[[], Callable[..., Tensor]], str]] = {
    "width": (lambda: lambda x: x.view(-1, 8, 6, 6), lambda: lambda x: x.view(len(x), x.shape[1], 6, 6), "x.shape[1]"),
    "layer norm": (lambda: nn.GroupNorm(1, 8), lambda: nn.BatchNorm2d(8), "BatchNorm"),
    "unknown": (lambda: lambda x: torch.linalg.pinv(x.mT).mT, lambda: nn.ReLU(), "standard operators"),
    "picked": (lambda: gated, lambda: evenly, "chunk"),
}


@pytest.mark.parametrize("name", ADVISED)
def test_what_is_advised_frees_the_layer(name: str) -> None:
    before, after, words = ADVISED[name]
    x = torch.randn(2, 3, 8, 8)
    (stem,) = (layer for layer in inspect_model(Net(before()), x).layers if layer.layer == "stem")
    assert not stem.groups
    assert words in stem.remedy
    (stem,) = (layer for layer in inspect_model(Net(after()), x).layers if layer.layer == "stem")
    assert stem.groups
    assert stem.reason == stem.remedy == ""


def test_what_is_advised_for_queries_frees_them() -> None:
    net, x = NonLocal(), torch.randn(1, 3, 8, 8)
    (q,) = (layer for layer in inspect_model(net, x).layers if layer.layer == "q")
    assert not q.groups
    assert "attention_heads='spread'" in q.remedy
    (q,) = (layer for layer in inspect_model(net, x, attention_heads="spread").layers if layer.layer == "q")
    assert q.groups
    assert q.reason == q.remedy == ""


def test_what_is_advised_for_a_layer_norm_frees_it_in_place() -> None:
    net, x = Net(nn.GroupNorm(1, 8)), torch.randn(2, 3, 8, 8)
    (stem,) = (layer for layer in inspect_model(net, x).layers if layer.layer == "stem")
    assert "allow_inexact_norms" in stem.remedy
    (stem,) = (layer for layer in inspect_model(net, x, allow_inexact_norms=True).layers if layer.layer == "stem")
    assert stem.groups
    assert not stem.reason


def test_the_reason_names_the_line_of_the_models_own_code() -> None:
    line = gated.__code__.co_firstlineno + 1
    assert f"split_with_sizes in the model itself, test_remedies.py:{line}" in frozen(Net(gated))
    raised = ADVISED["width"][0]()
    assert frozen(Net(raised)).endswith(f", test_remedies.py:{raised.__code__.co_firstlineno})")


def frozen(net: nn.Module) -> str:
    return trace_channels(net, torch.randn(2, 3, 8, 8)).frozen["stem"]


def test_classes_and_code_that_has_no_better_way_get_no_advice() -> None:
    assert remedy_for("reaches the output") == remedy_for("rows of a table (embedding in words)") == ""
