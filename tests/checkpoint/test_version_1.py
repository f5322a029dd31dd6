"""A checkpoint that an earlier release wrote is read as it was meant; see ``fit/version_1.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fit import version_1

from lightning_taylor.checkpoint.load import load_pruned
from lightning_taylor.checkpoint.version_1 import state_of_version_1
from lightning_taylor.checkpoint.widths import Widths, origin_of
from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.row_layout import RowLayout, Stretch
from lightning_taylor.graph.types import LinkedAttribute, Operation
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.report.state import PruningState, read_state
from lightning_taylor.utilities.plain import from_plain, to_plain

WORKED = LinkedAttribute("net", "worked", ("net.partial.weight", 0), 3, 3)
VIEWS = RowLayout((Stretch("views", 2),))


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    return torch.load(version_1.unpacked(tmp_path), weights_only=True)


@pytest.fixture
def old(content: dict[str, Any]) -> dict[str, Any]:
    state = content["callbacks"]["TaylorPruning"]
    assert state["version"] == 1
    return state


def test_its_graph_is_read(old: dict[str, Any]) -> None:
    graph = read_state(old).graph
    assert graph is not None
    for plain, found in ((old["graph"], graph), (old["guard"]["good"]["graph"], read_state(old).guard.good.graph)):  # type: ignore[union-attr]
        for name, slices in plain["groups"].items():
            group = found.groups[name]
            assert group.name == name
            assert [[s.tensor, s.dim, s.index.tolist(), str(s.role)] for s in group.slices] == [
                [tensor, dim, index.tolist(), role] for tensor, dim, index, role in slices
            ]
            assert {s.index.dtype for s in group.slices} == {torch.int64}
        assert found.shapes == {name: tuple(shape) for name, shape in plain["shapes"].items()}
        assert found.dense["net.stem.weight"] == (10, 3, 3, 3)
    assert graph.followers == (WORKED,)
    assert graph.rows == {"net.partial": VIEWS, "net.head": VIEWS}
    assert graph.operations[2] == Operation("net.head", "addmm", 120, (("net.stem.weight", 0), ("net.head.weight", 0)))
    assert len(graph.parameters) == 6


def test_the_rest_of_its_state_is_read(old: dict[str, Any]) -> None:
    state = read_state(old)
    assert state.record is not None
    assert [event.step for event in state.record.events] == [12, 16, 20]
    assert (state.step, state.pending, state.fit_length) == (21, None, FitLength(48, 8))
    assert state.report.after["val_acc"] == pytest.approx(0.9)
    assert state.report.called_with[0]["args"] == [{"shape": [1, 3, 12, 12], "dtype": "float32"}]
    assert state.widths.followers == (WORKED,)
    assert state.asked == {"flops": 0.5}
    assert state.guard is not None
    assert state.guard.good is not None
    assert [event.step for event in state.guard.good.record.events] == [12, 16]
    snapshot, values = state.guard.good.snapshot, old["guard"]["good"]["snapshot"]
    assert all(torch.equal(snapshot.tensors[name], tensor) for name, tensor in values["tensors"].items())
    assert torch.equal(snapshot.states[0][5]["momentum_buffer"], values["states"][0][5]["momentum_buffer"])


def test_it_is_written_anew_in_the_form_of_today(old: dict[str, Any]) -> None:
    plain = to_plain(read_state(old))
    assert plain["version"] == 2
    assert plain["graph"]["followers"] == [to_plain(WORKED)]
    assert to_plain(from_plain(PruningState, plain)).keys() == plain.keys() == {*old, "lowered_to", "pace"}


def test_what_was_not_known_at_the_time_may_be_missing(old: dict[str, Any]) -> None:
    for name in ("epoch_length", "asked", "model", "settings"):
        del old[name]
    for name in ("followers", "doubtful", "apart", "rows"):
        del old["graph"][name]
    for name in ("scores", "oracle", "called_with", "baseline"):
        del old["report"][name]
    old["guard"]["good"]["graph"]["followers"][0].pop()
    del old["guard"]["good"]["snapshot"]["held"]
    state = read_state(old)
    assert state.graph is not None
    assert (state.graph.followers, state.graph.rows) == ((), {})
    assert state.fit_length == FitLength(48)
    assert state.guard.good.graph.followers == (WORKED,)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["graph", "record", "scores", "criterion", "step", "length", "pending", "report"])
def test_what_is_missing_otherwise_is_named(name: str, old: dict[str, Any]) -> None:
    del old[name]
    with pytest.raises(TypeError, match=name):
        read_state(old)


def test_a_record_of_another_version_is_refused(old: dict[str, Any]) -> None:
    old["record"]["version"] = 9
    with pytest.raises(ValueError, match="a record of version 9"):
        state_of_version_1(old)


def test_its_model_is_loaded_with_its_widths(tmp_path: Path) -> None:
    module = load_pruned(version_1.Views, version_1.unpacked(tmp_path))
    assert module.net.worked == module.net.partial.out_channels == 1
    assert module.net.stem.out_channels == 8
    module.net(torch.rand(1, 3, 12, 12))


def test_its_widths_are_those_of_its_metadata_and_of_its_state(content: dict[str, Any]) -> None:
    of_metadata = origin_of(content)
    content["state_dict"] = dict(content["state_dict"])  # somebody rebuilt it
    assert of_metadata == origin_of(content)
    assert of_metadata is not None
    assert of_metadata.followers == (WORKED,)
    assert of_metadata.dims["net.partial.weight"] == (1, 0)
    content["callbacks"]["TaylorPruning"]["widths"] = to_plain(of_metadata)
    assert origin_of(content) == of_metadata


@pytest.mark.parametrize("change", [{"version": 3}, {"dense": 4}, {"followers": [[]]}, {"more": {}}])
def test_widths_that_nobody_can_read_are_refused(change: dict[str, Any]) -> None:
    plain = {**to_plain(Widths({}, {}, (WORKED,))), **change}
    with pytest.raises(UncoupledChannelsError, match="widths cannot be read"):
        origin_of({"state_dict": {}, "callbacks": {"TaylorPruning": {"widths": plain}}})


@pytest.mark.filterwarnings("ignore:.*(went back to the last good size|was not reached|dataloader is not resumable).*")
def test_its_fit_goes_on_where_it_was(tmp_path: Path) -> None:
    pruner = version_1.pruner()
    version_1.fit([pruner], resume=version_1.unpacked(tmp_path))
    state = read_state(pruner.state_dict())
    assert state.record is not None
    assert [event.step for event in state.record.events][:3] == [12, 16, 20]
    assert (state.version, state.step, state.length) == (2, 48, 48)
    assert state.guard is not None
    assert state.guard.ended, "the guard of the resumed fit did not go back"
