from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.plan.cost import CostModel
from lightning_taylor.plan.record import Event, Record, fingerprint
from lightning_taylor.utilities.plain import from_plain, to_plain


def recorded(graph, removals):
    """A record of these removals and the graph that they lead to."""
    record = Record()
    for step, removed in enumerate(copy.deepcopy(removals), start=1):
        graph = graph.shrink(removed)
        cost = CostModel(graph).now
        record.append(Event(step, removed, cost.flops, cost.params, cost.channels, seconds=0.25))
    return record, graph


def same(a, b):
    return a.shapes == b.shapes and all(
        torch.equal(s.index, t.index)
        for name in a.groups
        for s, t in zip(a.groups[name].slices, b.groups[name].slices, strict=True)
    )


REMOVALS = [{"l0": [0, 3]}, {"l0": [1], "l1": [0, 1, 2]}, {}]


def test_a_record_replayed_on_the_dense_graph_gives_the_pruned_one(make_graph):
    dense = make_graph([6, 5], [1, 2])
    record, pruned = recorded(dense, REMOVALS)
    assert same(record.replay(dense), pruned)


def test_a_measured_figure_travels_with_its_event():
    record = Record([Event(1, {}, 1, 1, 1, seconds=0.0, measured={"latency": 0.7})])
    plain = to_plain(record)
    assert from_plain(Record, plain) == record
    del plain["events"][0]["measured"]
    assert from_plain(Record, plain).events[0].measured == {}


def test_what_was_saved_does_not_change_with_the_record(make_graph):
    record, _ = recorded(make_graph([6, 5]), REMOVALS)
    plain = to_plain(record)
    record.events[0].removed["l0"].append(99)
    record.append(record.events[0])
    assert len(plain["events"]) == 3
    assert plain["events"][0]["removed"] == {"l0": [0, 3]}


@pytest.mark.parametrize("sizes", [[2, 5], [6], [7, 5]])
def test_a_record_does_not_replay_on_another_graph(make_graph, sizes):
    record, _ = recorded(make_graph([6, 5]), REMOVALS)
    with pytest.raises(UncoupledChannelsError, match=r"step [12] does not fit this graph"):
        record.replay(make_graph(sizes))


def test_a_record_does_not_replay_twice(make_graph):
    record, pruned = recorded(make_graph([6, 5]), REMOVALS[:1])
    with pytest.raises(UncoupledChannelsError, match="graph of the dense model"):
        record.replay(pruned)


decisions = st.dictionaries(st.sampled_from("abc"), st.sets(st.integers(0, 4)).map(sorted))


@given(decisions, decisions)
def test_fingerprints_agree_only_for_the_same_removal(one, other):
    def nonempty(decision):
        return {name: indices for name, indices in decision.items() if indices}

    assert (fingerprint(one) == fingerprint(other)) == (nonempty(one) == nonempty(other))


@given(decisions)
def test_a_fingerprint_fits_an_int64_tensor_and_ignores_order_and_type(decision):
    reordered = {name: torch.tensor(decision[name], dtype=torch.int64) for name in reversed(decision)}
    assert torch.tensor(fingerprint(decision)).item() == fingerprint(reordered)


def test_a_fingerprint_is_the_same_in_every_process():
    """Written down once: Python's own ``hash`` would differ from run to run."""
    assert fingerprint({"layer1.0.conv1": [0, 5], "features.3": [2]}) == 3923209184352244588
