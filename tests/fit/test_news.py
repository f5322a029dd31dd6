"""What is said while a fit runs, and what a hook of the user's is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

from fit.boring import Boring, loader, trainer
from lightning_taylor import Gradual, TaylorPruning, trace_channels
from lightning_taylor.fit import news
from lightning_taylor.fit.news import News
from lightning_taylor.report import PruningEvent


@dataclass
class Heard:
    lines: list[str] = field(default_factory=list)
    events: list[PruningEvent] = field(default_factory=list)


def listened(folder: Path, heard: Heard, **kwargs: object) -> TaylorPruning:
    callback = TaylorPruning(
        0.5, schedule=Gradual(1, 1, 4), measure_latency=False, on_event=heard.events.append, **kwargs
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(news, "rank_zero_info", heard.lines.append)
        trainer([callback], default_root_dir=folder, max_epochs=1).fit(Boring(zoo.NETS["vgg"][0]()), loader())
    return callback


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Heard, TaylorPruning]:
    heard = Heard()
    return heard, listened(tmp_path_factory.mktemp("fit"), heard)


def test_the_trace_and_each_event_are_told_in_a_line(heard: tuple[Heard, TaylorPruning]) -> None:
    traced, *events = heard[0].lines
    assert re.fullmatch(
        r"TaylorPruning: traced Boring in \d+\.\d s: \d+ channels in \d+ groups can go; "
        r"1 layer stays: \S+ \(.+\)", traced
    )  # fmt: skip
    assert len(events) == len(heard[0].events) >= 2
    for line in events:
        assert re.match(
            r"TaylorPruning: step \d: \d+ channels? went \(.* \d+.*\), \d+\.\d% of the FLOPs are left; ", line
        )


def test_the_users_hook_is_told_of_each_event(heard: tuple[Heard, TaylorPruning]) -> None:
    events, callback = heard[0].events, heard[1]
    graph = callback.graph
    assert graph is not None
    assert [event.step for event in events] == [event.step for event in callback._session.pruner.record.events]
    assert events[-1].fractions == callback.remaining
    for layer, width in events[-1].widths.items():
        tensor, dim = graph.layers[layer]
        assert graph.dense[tensor][dim] - sum(event.removed.get(layer, 0) for event in events) == width
    assert all(event.seconds > 0 and event.channels > 0 for event in events)


def test_a_silent_callback_says_nothing(tmp_path: Path) -> None:
    heard = Heard()
    listened(tmp_path, heard, verbose=False)
    assert not heard.lines
    assert len(heard.events) >= 2


def test_only_a_long_trace_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(news, "rank_zero_info", lines.append)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = trace_channels(net, torch.rand(2, 3))
    News(verbose=True).trace(Boring(net), lambda: graph)
    assert len(lines) == 1
    News(verbose=True).trace(Boring(nn.ModuleList(nn.Linear(1, 1) for _ in range(60))), lambda: graph)
    assert (
        lines[1] == "TaylorPruning: looks for the channels of Boring (120 parameter tensors), which can take a minute"
    )
