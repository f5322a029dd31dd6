"""The state of a pruning, and all that it holds, comes back from a checkpoint as it was."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_taylor import trace_channels
from lightning_taylor.checkpoint.widths import Widths, widths_of
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.row_layout import RowLayout
from lightning_taylor.graph.types import ChannelGroup, LinkedAttribute, Operation
from lightning_taylor.plan.record import Event, Record
from lightning_taylor.report.notes import ReportNotes
from lightning_taylor.report.state import VERSION, GuardState, PruningState, check_version, read_state
from lightning_taylor.study.curves import Curve
from lightning_taylor.surgery.snapshot import Snapshot
from lightning_taylor.utilities.plain import from_plain, to_plain

PLAIN: list[Any] = [Curve, Event, Record, RowLayout, LinkedAttribute, Operation, Widths, ReportNotes]
"""What is written and holds no tensor."""

WITH_TENSORS: list[Any] = [ChannelGroup, Snapshot]
NESTED = [pytest.param(kind, marks=pytest.mark.slow) for kind in (ChannelGraph, GuardState, PruningState)]

texts = st.text("ab.", max_size=3)
scalars: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(0, 2**40),
    float: st.floats(allow_nan=False),
    str: texts,
    Tensor: st.lists(st.integers(0, 9), min_size=1, max_size=3).map(lambda rows: torch.tensor(rows).reshape(-1, 1)),
    Any: st.none() | st.booleans() | texts,
}


def drawn(hint: Any) -> st.SearchStrategy[Any]:
    """Draw a value of a type, or of a dataclass by its type hints."""
    if hint in scalars:
        return scalars[hint]
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if NoneType in inner:
        return st.none() | drawn(next(part for part in inner if part is not NoneType))
    if is_dataclass(kind):
        made = {name: drawn(of) for name, of in get_type_hints(kind).items()}
        made = {name: st.just(VERSION) if name == "version" else strategy for name, strategy in made.items()}
        if kind is PruningState:
            made |= {"graph": drawn(ChannelGraph), "record": drawn(Record)}
        return st.builds(kind, **made)  # type: ignore[arg-type]
    if kind is Literal:
        return st.sampled_from(inner)
    if issubclass(kind, StrEnum):
        return st.sampled_from(kind)
    if issubclass(kind, Mapping):
        return st.dictionaries(drawn(inner[0]), drawn(inner[1]), max_size=2)
    if kind is tuple and inner[1] is not ...:
        return st.tuples(*map(drawn, inner))
    of_some = st.lists(drawn(inner[0]), min_size=1, max_size=2)  # a group has a slice
    return of_some.map(kind) if kind in (tuple, frozenset) else of_some


def same(a: Any, b: Any) -> bool:
    """Compare two values with their types, tensors by value."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def loaded(plain: Any) -> Any:
    """Write a file and read it, as ``torch.load`` reads one that is not trusted."""
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", [*PLAIN, *WITH_TENSORS, *NESTED], ids=lambda kind: kind.__name__)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_all_that_is_written_comes_back(kind: Any, data: st.DataObject) -> None:
    value = data.draw(drawn(kind))
    assert same(from_plain(kind, loaded(to_plain(value))), value)
    if kind in PLAIN:
        assert same(from_plain(kind, json.loads(json.dumps(to_plain(value)))), value)


STATE = PruningState(
    graph=None, record=None, criterion="", scores={}, step=3, pending=None, length=50, report=ReportNotes({}, {}, [])
)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NETS)
def test_the_graph_of_any_net_comes_back(name: str) -> None:
    graph = trace_channels(*zoo.build(name))
    state = replace(STATE, graph=graph, record=Record(), widths=widths_of(graph))
    assert same(read_state(loaded(to_plain(state))), state)


def test_the_indices_of_channels_take_half_of_their_bytes_in_a_file() -> None:
    graph = trace_channels(*zoo.build(next(iter(zoo.NETS))))
    (group, *_) = to_plain(graph)["groups"].values()
    assert group["slices"][0]["index"].dtype == torch.int32


@pytest.mark.parametrize("version", [0, 3, 99, None, "1", -1])
def test_a_version_that_is_not_known_is_refused(version: object) -> None:
    says = f"has version {version!r}, this release reads {VERSION}: resume with the release that wrote it"
    for read in (read_state, check_version):
        with pytest.raises(ValueError, match=says):
            read({**to_plain(STATE), "version": version})


def test_what_a_subclass_of_the_callback_added_is_left_alone() -> None:
    assert same(read_state({**to_plain(STATE), "mine": object()}), STATE)


def test_a_graph_goes_with_a_record() -> None:
    with pytest.raises(ValueError, match="a graph goes with a record"):
        replace(STATE, record=Record())


def test_a_fit_of_which_nobody_said_how_long_an_epoch_is_has_a_length() -> None:
    length = STATE.fit_length
    assert length is not None
    assert (length.steps, length.epoch) == (50, float("inf"))
    assert replace(STATE, length=None).fit_length is None
