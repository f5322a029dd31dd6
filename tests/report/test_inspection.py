"""A dry run says what a fit would find: the same groups and reasons, the same totals at the same steps."""

from __future__ import annotations

import json
from io import StringIO

import pytest
import torch
import zoo
from rich.console import Console
from torch import nn

from lightning_taylor import Gradual, Iterative, OneShot, Target, trace_channels
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.record import Event, Record
from lightning_taylor.plan.select import select
from lightning_taylor.report.dry_run import dry_run
from lightning_taylor.report.inspection import Inspection, inspect_model
from lightning_taylor.report.inspection_table import inspection_tables

X = torch.rand(2, 3, 12, 12)


class Net(nn.Module):
    """Two layers tied by an addition, one alone, one depthwise, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.tied = zoo.conv(3, 16), zoo.conv(16, 12), zoo.conv(12, 16)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = x + self.tied(self.inner(x).relu())
        return self.head(self.depthwise(x).mean((2, 3)))


def shown(inspection: Inspection, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(inspection_tables(inspection))
    return captured.get()


def test_every_layer_is_removable_or_has_a_reason() -> None:
    layers = {layer.layer: layer for layer in inspect_model(Net(), X).layers}
    assert list(layers) == ["first", "inner", "tied", "depthwise", "head"]
    assert [layer.groups for layer in layers.values()] == [("first",), ("inner",), ("first",), ("first",), ()]
    assert layers["head"].reason == "reaches the output"
    assert [layer.least for layer in layers.values()] == [1, 1, 1, 1, 5]
    assert all(layer.reason == "" for name, layer in layers.items() if name != "head")


def test_shares_of_the_flops_are_those_of_the_layers_operations_and_add_up() -> None:
    net = Net()
    found = inspect_model(net, X)
    per_entry = {"first": 144, "inner": 144, "tied": 144, "depthwise": 100, "head": 1}  # positions of the outputs
    flops = {name: 2 * n * net.get_submodule(name).weight.numel() for name, n in per_entry.items()}  # type: ignore[union-attr,operator]
    assert found.dense.flops == sum(flops.values())
    for layer in found.layers:
        assert layer.flops == pytest.approx(flops[layer.layer] / sum(flops.values()))
    assert sum(layer.flops for layer in found.layers) == pytest.approx(1)


def test_ignored_layers_and_limits_change_what_can_go() -> None:
    found = inspect_model(Net(), X, ignore=["inner"], min_channels=3, round_to=4)
    layers = {layer.layer: layer for layer in found.layers}
    assert "ignored" in layers["inner"].reason
    assert layers["inner"].least == 12
    assert layers["first"].least == 4
    assert all(event.widths["first"] % 4 == 0 for event in found.events)
    assert found.least.flops < found.now.flops


@pytest.mark.parametrize("target", [Target(flops=0.5), Target(params=0.4), Target(flops=0.6, channels=0.5)])
def test_the_last_event_lands_where_a_selection_by_any_scores_would(target: Target) -> None:
    found = inspect_model(Net(), X, target=target)
    graph = trace_channels(Net(), X)
    other = graph.shrink(select({n: torch.rand(g.size) for n, g in graph.groups.items()}, graph, target))
    assert found.met
    assert target.met(found.events[-1].cost, found.dense)
    # Both stop at the first channel that does: within two channels' worth of each other.
    per_channel = max(CostModel(graph).saved_per_channel("flops").values())
    assert abs(found.events[-1].cost.flops - CostModel(other).now.flops) <= 2 * per_channel


def test_every_group_loses_the_same_share() -> None:
    widths = inspect_model(Net(), X, target=Target(channels=0.5)).events[-1].widths
    assert widths["first"] == widths["tied"] == widths["depthwise"] == 8
    assert widths["inner"] == 6


def test_small_groups_lose_their_share_too_over_many_events() -> None:
    net = nn.Sequential(zoo.conv(3, 4), nn.ReLU(), zoo.conv(4, 64), nn.ReLU(), zoo.conv(64, 5))
    events = dry_run(trace_channels(net, X), Target(channels=0.5), Iterative(1, 1))
    assert len(events) == 34
    assert events[-1].widths == {"0": 2, "2": 32}


def test_events_come_at_the_schedules_steps_and_never_below_its_curve_by_more_than_a_channel() -> None:
    schedule, graph = Gradual(10, 20, 60), trace_channels(Net(), X)
    events = dry_run(graph, Target(flops=0.4), schedule)
    # Once the target is met, a schedule has nothing more to do.
    assert [event.step for event in events] == schedule.events(100)[: len(events)]
    assert Target(flops=0.4).met(events[-1].cost, CostModel(graph).dense)
    for event in events:
        allowed = schedule.demand(event.step or 0, Target(flops=0.4)).target
        assert allowed.met(event.cost, CostModel(graph).dense)
        assert event.cost.channels <= CostModel(graph).dense.channels


def test_channels_per_event_go_until_the_target_is_met() -> None:
    events = dry_run(trace_channels(Net(), X), Target(channels=0.5), Iterative(5, 3))
    assert [event.cost.channels for event in events] == [25, 22, 19, 16, 14]
    assert [event.step for event in events] == [5, 10, 15, 20, 25]


def test_a_fit_that_ends_too_early_does_not_meet_the_target() -> None:
    found = inspect_model(Net(), X, target=Target(channels=0.5), schedule=Iterative(5, 3), steps=12)
    assert len(found.events) == 2
    assert not found.met
    assert "TARGET NOT MET" in shown(found)
    with pytest.raises(ValueError, match="needs 40 optimizer steps"):
        inspect_model(Net(), X, schedule=OneShot(40), steps=12)


def test_a_target_out_of_reach_is_a_finding_and_no_error() -> None:
    found = inspect_model(Net(), X, target=0.5, min_channels=15)
    assert not found.met
    assert found.events == ()
    assert "cannot be met: with every group at its minimum" in found.problem
    assert "TARGET OUT OF REACH" in shown(found)
    assert found.layers[0].least == 15


def test_what_has_to_be_measured_is_left_to_the_fit() -> None:
    found = inspect_model(Net(), X, target=Target(flops=0.5, latency=0.7))
    assert found.met
    assert "latency is measured in the fit" in " ".join(shown(found).split())
    assert inspect_model(Net(), X, target=Target(latency=0.7)).events == ()


def test_the_model_is_left_as_it_is() -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inspect_model(net, X, target=0.3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_pruned_network_is_shown_with_what_it_was() -> None:
    graph = trace_channels(Net(), X)
    record = Record()
    for step, remove in ((3, {"first": [0, 5]}), (6, {"first": [1], "inner": range(4)})):
        graph = graph.shrink(remove)
        now = CostModel(graph).now
        record.append(Event(step, {n: list(r) for n, r in remove.items()}, now.flops, now.params, now.channels, 0.1))
    found = Inspection.after(graph, record)
    assert [(e.step, e.widths["first"], e.widths["inner"]) for e in found.events] == [(3, 14, 12), (6, 13, 8)]
    assert [(layer.dense, layer.now) for layer in found.layers[:3]] == [(16, 13), (12, 8), (16, 13)]
    assert found.now == found.events[-1].cost
    assert sum(layer.flops for layer in found.layers) == pytest.approx(1)
    assert "Pruned in 2 events." in shown(found)


def test_a_table_fits_into_80_columns_whatever_the_names() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_module_with_a_rather_long_name = nn.ModuleDict({"and_another_in_[brackets]": Net()})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return next(iter(self.a_module_with_a_rather_long_name.values()))(x)

    for net in (Net(), Deep()):
        text = shown(inspect_model(net, X, steps=1000))
        assert max(map(len, text.splitlines())) <= 80
        assert "head" in text.replace("\n", "")
    assert "[brackets]" in text


def test_layers_of_a_group_follow_each_other() -> None:
    lines = [line.strip() for line in shown(inspect_model(Net(), X)).splitlines()]
    names = [line.split("  ")[0] for line in lines if line.startswith(("first", "+ ", "inner")) and line[-1].isdigit()]
    assert names == ["first", "+ tied", "+ depthwise", "inner"]


def test_the_data_is_json_with_every_event() -> None:
    plain = json.loads(json.dumps(inspect_model(Net(), X, steps=1000).to_plain()))
    assert plain["met"]
    assert len(plain["events"]) > 10
    assert {"step", "cost", "widths"} <= plain["events"][0].keys()
    assert plain["layers"][0]["layer"] == "first"


def test_what_is_printed_is_a_line_and_a_short_table() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 3))
    x = torch.rand(1, 3, 16, 16)
    graph, found = trace_channels(net, x), inspect_model(net, x, target=0.5)
    assert repr(graph) == "ChannelGraph(1 groups of 8 channels, 1 layers frozen)"
    assert repr(found).startswith("Inspection(2 layers, 1 can shrink; ")
    assert repr(found).endswith("target flops=0.5)")
    for shown, first, last in (
        (graph, ["0", "8", "0"], ["2", "5", "reaches", "the", "output"]),
        (found, ["0", "45.0%", "8", "1", "4"], ["2", "55.0%", "5", "5", "5", "reaches", "the", "output"]),
    ):
        heading, columns, *rows = str(shown).splitlines()
        assert (heading, columns.split()[0]) == (repr(shown), "layer")
        assert [row.split() for row in rows] == [first, last]
        assert shown._repr_html_().count("<tr>") == 3


@pytest.mark.slow
def test_a_deep_network_is_printed_on_a_screen() -> None:
    found = inspect_model(torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(90))), torch.rand(1, 4))
    lines = str(found).splitlines()
    assert len(lines) == 43
    assert lines[22] == "... 50 more"
    assert found._repr_html_().count("<tr>") == 91
