"""A torchvision model of each kind that ``test_torchvision.py`` leaves out, measured as the campaign does.

Those of many blocks are here with few (``shallow.py``); of families whose blocks are alike, one stands for all.
``campaigns/architectures.py`` goes over all 121 of them, ``campaigns/foreign.py`` over other people's libraries.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import shallow
import torch
import zoo
from campaigns import architectures, measuring
from campaigns.measuring import Example, Row, kind, measure, parts
from campaigns.table import Store, Zoo, campaign, markdown
from torch import nn

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.trace.api import trace_channels

WHOLE = {"mobilenet_v3_small": 9968}
"""Name -> outputs of its convolutions and linear layers, classes left out; all of them can be removed."""

PARTLY = {"raft_small": 1936, "ssdlite320_mobilenet_v3_large": 20352}
"""Name -> how many of them can be removed at least; norms over channels, and what meets them, stay."""

GO_WHOLE = {
    "mc3": r"(stem|layer).*",
    "efficientnet_v2": r"features.*",
    "resnext": r"(conv1|layer.*)",
    "swin": r".*(mlp\.0|attn\.qkv)",
    "swin_v2": r".*(mlp\.0|attn\.qkv|attn\.cpb_mlp\.[02])",
    "swin3d": r".*(mlp\.0|attn\.qkv)",
    "maxvit": r"(stem.*|.*(conv_[ab]\.0|squeeze_excitation.*|attn_layer\.1\.to_qkv|mlp_layer\.1)|classifier\.3)",
    # A head does not go from an attention that has one only, as the first block's.
    "mvit_v1": r".*(mlp\.0|blocks\.[1-9]\d*\.attn\.qkv)",
    "mvit_v2": r".*(mlp\.0|blocks\.[1-9]\d*\.attn\.qkv)",
}
"""Shallow model -> its convolutions and linear layers of which every output can be removed; no other's can."""


def right_row(name: str, zoo_: Zoo | None = None) -> Row:
    row = Row(**measure(name, (zoo_ or architectures.zoo())[name]))
    assert row.status == "right", row.note
    assert min(row.effect.values()) > 1e-6, "the removals must matter for the comparison to count"
    return row


def small(name: str = "residual") -> Callable[[], Example]:
    make, example = zoo.NETS[name]
    return lambda: (make(), (example(),))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels"), WHOLE.items())
def test_every_channel_but_the_classes_goes_exactly(name: str, channels: int) -> None:
    row = right_row(name)
    assert (row.removable, row.channels) == (channels, channels)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), PARTLY.items())
def test_what_is_called_removable_goes_exactly_and_the_rest_has_a_reason(name: str, least: int) -> None:
    row = right_row(name)
    assert row.removable >= least
    assert row.removable + sum(row.reasons.values()) == row.channels


@pytest.mark.slow
@pytest.mark.parametrize("name", shallow.MODELS)
def test_every_kind_of_block_loses_what_its_norms_leave_free(name: str) -> None:
    row = right_row(name, shallow.MODELS)
    model, _ = shallow.MODELS[name]()
    free = [module for layer, module in model.named_modules() if re.fullmatch(GO_WHOLE[name], layer)]
    widths = [m.weight.shape[0] for m in free if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    assert row.removable == sum(widths)
    assert row.removable + sum(row.reasons.values()) == row.channels


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["quantized_resnet18", "quantized_mobilenet_v2", "quantized_shufflenet_v2_x0_5"])
def test_a_quantized_model_is_refused_by_name_with_the_way_out(name: str) -> None:
    row = Row(**measure(name, lambda: architectures.build(name, quantize=True)))
    assert row.status == "refused"
    assert "is quantized; prune the floating-point model, then quantize it" in row.note


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_model_that_is_only_ready_to_be_quantized_is_pruned() -> None:
    row = right_row("quantized_resnet18")
    assert (row.removable, row.channels) == (4800, 4800)


def test_a_graph_that_forgets_a_reader_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: nn.Module, example: object) -> ChannelGraph:
        graph = trace_channels(model, example)
        name, group = next(iter(graph.groups.items()))
        slices = tuple(s for s in group.slices if s is not group.of(Role.CONSUMER)[-1])
        return replace(graph, groups={**graph.groups, name: replace(group, slices=slices)})

    monkeypatch.setattr(measuring, "trace_channels", forgetful)
    row = Row(**measure("residual", small()))
    assert row.status == "wrong"
    assert row.note.startswith("25 % removed: RuntimeError")


def test_a_graph_that_crosses_two_channels_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def crossed(model: nn.Module, example: object) -> ChannelGraph:
        graph = trace_channels(model, example)
        name, group = next(iter(graph.groups.items()))
        slices = [replace(s, index=s.index.flip(0)) if s.role is Role.CONSUMER else s for s in group.slices]
        return replace(graph, groups={**graph.groups, name: replace(group, slices=tuple(slices))})

    monkeypatch.setattr(measuring, "trace_channels", crossed)
    row = Row(**measure("residual", small()))
    assert row.status == "wrong"
    assert "25 % removed, evaluation: differs by" in row.note


def test_a_model_with_nothing_to_remove_is_frozen_only_and_its_reasons_are_counted() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1))
    row = Row(**measure("normed", lambda: (net, (torch.randn(1, 3, 8, 8),))))
    assert (row.status, row.channels, row.removable, row.outputs) == ("frozen-only", 8, 0, 4)
    assert sum(row.reasons.values()) == 8


@pytest.mark.slow
def test_a_model_that_hangs_or_dies_is_a_row_and_not_the_end(tmp_path: Path) -> None:
    def hangs() -> Example:
        time.sleep(60)
        raise AssertionError("unreachable")

    def dies() -> Example:
        raise SystemExit(3)

    store = Store(tmp_path / "rows.jsonl", Row)
    models = {"hangs": hangs, "dies": dies, "fine": small()}
    campaign(models, ["hangs"], store, timeout=1, memory=64)
    campaign(models, models, store, timeout=120, memory=64)
    assert {name: row.status for name, row in store.rows.items()} == {
        "hangs": "timeout",
        "dies": "error",
        "fine": "right",
    }


def test_a_model_that_has_a_row_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Store(path, Row).add(Row("vgg", "right").__dict__)

    def never() -> Example:
        raise AssertionError("measured again")

    store = Store(path, Row)
    campaign({"vgg": never}, ["vgg"], store, timeout=20, memory=64)
    assert store.rows["vgg"].status == "right"
    assert len(path.read_text().splitlines()) == 1


def test_a_layer_with_several_reasons_is_counted_by_reason() -> None:
    reason = "3 of 8 channels: reaches the output; 5 of 8 channels: no rule for f in a.b; c"
    assert parts(reason, 8) == [(3, "reaches the output"), (5, "no rule for f in a.b; c")]
    assert parts("reaches the output", 8) == [(8, "reaches the output")]
    assert parts("", 8) == []


def test_reasons_of_one_kind_are_told_apart_from_their_places() -> None:
    assert kind("no rule for sort in layer1.0.conv2") == kind("no rule for sort in the model itself")
    assert kind("the model's code assumes its width (RuntimeError: shape '[1, 2]')") == (
        "the model's code assumes its width"
    )
    assert kind("removing its channels changes the output by 3.0e-05 (relative)") == kind(
        "removing its channels changes the output by 1.2e+01 (relative)"
    )


def test_the_table_puts_what_is_wrong_first_and_sums_what_stays() -> None:
    rows = [Row("b", "right", channels=10, removable=6, reasons={"odd": 4}), Row("a", "wrong", "differs by 1")]
    lines = markdown(rows, "Zoo").splitlines()
    assert "1 right, 1 wrong." in lines
    assert [line.split(" | ")[:2] for line in lines if " | wrong | " in line or " | right | " in line] == [
        ["| a", "wrong"],
        ["| b", "right"],
    ]
    assert "| odd | 4 | 40.0 % | 1 | b |" in lines
    assert "- **a** (wrong): differs by 1" in lines
