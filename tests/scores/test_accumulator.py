"""The sums between two events: a weighted mean that ranks can share, and the matrix that feeds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fit.rank_launch import all_well, on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import ChannelGroup, Role, Slice
from lightning_taylor.scores.accumulator import ChannelSums
from lightning_taylor.scores.channel_matrix import Block, ChannelMatrix

Batch = tuple[Tensor, Tensor, float]


def _batches(seed: int, count: int, channels: int = 5) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        seen_C = torch.rand(channels, generator=generator) < 0.7
        score_C = torch.rand(channels, generator=generator, dtype=torch.float64) * seen_C
        if torch.rand((), generator=generator) < 0.2:
            score_C[0] = float("nan")
        found.append((score_C, seen_C, float(torch.randint(1, 9, (), generator=generator))))
    return found


def _mean(batches: list[Batch], channels: int = 5) -> Tensor:
    """The loop: every channel on its own."""
    means = []
    for c in range(channels):
        kept = [(float(s[c]), n) for s, seen, n in batches if bool(s.isfinite().all()) and bool(seen[c])]
        weight = sum(n for _, n in kept)
        means.append(sum(s * n for s, n in kept) / weight if weight else float("nan"))
    return torch.tensor(means, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_mean_equals_the_loop_over_batches(seed: int, count: int) -> None:
    batches = _batches(seed, count)
    sums = ChannelSums(5, dtype=torch.float64)
    for batch in batches:
        sums.update(*batch)
    torch.testing.assert_close(sums.compute(), _mean(batches), equal_nan=True)


def test_reset_returns_to_nothing_and_one_process_settles_at_no_cost() -> None:
    sums = ChannelSums(5, dtype=torch.float64)
    for batch in _batches(0, 4):
        sums.update(*batch)
    before = sums.state()
    sums.settle()
    assert all(torch.equal(value, before[name]) for name, value in sums.state().items())
    sums.reset()
    assert not any(value.any() for value in sums.state().values())


def _settle_on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    sums = ChannelSums(5, dtype=torch.float64)
    for batch in _batches(rank, 3 + rank):
        sums.update(*batch)
    sums.settle()
    sums.settle()
    torch.save(sums.state(), f"{folder}/settled{rank}.pt")
    for batch in _batches(10 + rank, 2):
        sums.update(*batch)
    sums.settle()
    # Go on from what rank zero alone would have saved.
    resumed = ChannelSums(5, dtype=torch.float64)
    resumed.load(torch.load(f"{folder}/settled0.pt"))
    for batch in _batches(10 + rank, 2):
        resumed.update(*batch)
    resumed.settle()
    torch.save({"mean": sums.mean(), "resumed": resumed.mean()}, f"{folder}/mean{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_share_their_sums_and_go_on_from_the_checkpoint_of_one(tmp_path: Path) -> None:
    all_well(on_ranks(2, _settle_on_a_rank, str(tmp_path)))
    one, other = (torch.load(tmp_path / f"mean{rank}.pt") for rank in (0, 1))
    everything = [*_batches(0, 3), *_batches(1, 4), *_batches(10, 2), *_batches(11, 2)]
    torch.testing.assert_close(one["mean"], _mean(everything), equal_nan=True)
    assert all(torch.equal(one["mean"], same) for same in (one["resumed"], other["mean"], other["resumed"]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_assembly_equals_the_loop_over_channels(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    widths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    examples = data.draw(st.integers(1, 3))
    parts = []
    for _ in range(data.draw(st.integers(0, 4))):
        group, source = data.draw(st.integers(0, len(sizes) - 1)), data.draw(st.integers(0, len(widths) - 1))
        row = st.lists(st.integers(0, widths[source] - 1), min_size=2, max_size=2, unique=widths[source] > 1)
        index = torch.tensor([data.draw(row)[: min(2, widths[source])] for _ in range(sizes[group])])
        if not any(p.group == f"g{group}" and p.source == source for p in parts):
            parts.append(Block(f"g{group}", source, index, data.draw(st.sampled_from([1.0, 0.5]))))
    graph = _graph({f"g{g}": size for g, size in enumerate(sizes)})
    assembly = ChannelMatrix(graph, dict(enumerate(widths)), parts, dtype=torch.float64, device=torch.device("cpu"))
    entries = {
        s: torch.randn(examples, w, dtype=torch.float64) for s, w in enumerate(widths) if data.draw(st.booleans())
    }
    expected = []
    for name, group in graph.groups.items():
        for c in range(group.size):
            mine = [p for p in parts if p.group == name and p.source in entries]
            total = torch.zeros(examples, dtype=torch.float64)
            for p in mine:
                total += p.scale * entries[p.source][:, p.index[c]].sum(1)
            expected.append(total)
    torch.testing.assert_close(assembly(entries, examples), torch.stack(expected))


def test_the_assembly_knows_which_groups_a_source_feeds() -> None:
    graph = _graph({"a": 2, "b": 1})
    parts = [
        Block("a", "x", torch.tensor([[0], [1]])),
        Block("b", "x", torch.tensor([[2]])),
        Block("a", "y", torch.zeros(2, 1).long()),
    ]
    assembly = ChannelMatrix(graph, {"x": 3, "y": 1}, parts, dtype=torch.float32, device=torch.device("cpu"))
    assert assembly.channels_of(["x"]).tolist() == [True, True, True]
    assert assembly.channels_of(["y"]).tolist() == [True, True, False]
    assert assembly.channels_of([]).tolist() == [False, False, False]


def test_an_entry_named_twice_for_a_channel_counts_once() -> None:
    graph = _graph({"a": 1})
    parts = [Block("a", "x", torch.tensor([[0]])), Block("a", "x", torch.tensor([[0]]))]
    assembly = ChannelMatrix(graph, {"x": 1}, parts, dtype=torch.float32, device=torch.device("cpu"))
    assert assembly({"x": torch.tensor([[3.0]])}, 1).item() == pytest.approx(3.0)


def _graph(sizes: dict[str, int]) -> ChannelGraph:
    groups = {
        name: ChannelGroup(name, (Slice(f"{name}.weight", 0, torch.arange(size).unsqueeze(1), Role.PRODUCER),))
        for name, size in sizes.items()
    }
    return ChannelGraph(groups=groups, frozen={}, layers={}, shapes={}, dense={})
