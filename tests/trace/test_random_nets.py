"""Random networks times random removals: right, or frozen with a reason, never wrong.

``python tests/trace/test_random_nets.py --count 5000 --seed 0`` runs a campaign, counts, and prints every failure as
the smallest program that still fails.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, get_args

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

sys.path.insert(0, str(Path(__file__).parents[1]))

import random_nets
import zoo
from exactness import difference, masked, outputs, sliced
from random_program import Gene
from surgery.reference import lost, named_state, named_tensors, snapshot, without, zero

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Remove, Role
from lightning_taylor.surgery.prune import prune_channels
from lightning_taylor.surgery.transaction import Transaction
from lightning_taylor.trace.api import trace_channels
from lightning_taylor.trace.options import AttentionHeads

COUNT = 80
"""Networks per property; a campaign of thousands is the command above."""

TIGHT, LOOSE = 1e-10, 1e-2
Check = Callable[[list[Gene]], int]
"""Raises if the network of these genes is wrong; returns how many groups it has."""


def network(genes: list[Gene]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = random_nets.build(random_nets.source_of(genes)).double()
    return zoo.randomize(model), torch.randn(4, 3, random_nets.SIDE, random_nets.SIDE).double()


def traced(model: nn.Module, x: Tensor, genes: list[Gene]) -> ChannelGraph:
    """Attentions lose whole heads in one half of the networks, coordinates of each in the other."""
    heads = Random(repr(genes)).choice(get_args(AttentionHeads))
    return trace_channels(model, x, attention_heads=heads)


def check_exact(genes: list[Gene]) -> int:
    model, x = network(genes)
    graph = traced(model, x, genes)
    every_layer_has_its_reason(graph)
    for remove in removals(graph, Random(str(genes))):
        twin = masked(model, graph, remove)
        small = sliced(model, graph, remove)
        expected, found = paths(twin, x), paths(small, x)
        apart = difference(expected, found)
        assert vars(twin).get("classes") == vars(small).get("classes"), f"the classes follow {listed(remove)}"
        assert apart < TIGHT or apart < sensitivity(twin, x), f"{apart:.1e} apart without {listed(remove)}"
    return len(graph.groups)


def check_twin(genes: list[Gene]) -> int:
    model, x = network(genes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-3)  # a small eps would magnify rounding noise
    steps(model, optimizer, x, 3)
    graph = traced(model, x, genes)
    twin, its = copy.deepcopy((model, optimizer))
    remove = removals(graph, Random(str(genes)))[-1]
    gone = lost(graph, remove)
    smaller = prune_channels(model, graph, remove, optimizers=[optimizer])
    equal_survivors(model, optimizer, twin, its, gone, graph, atol=0)
    consumers = lost(graph, remove, Role.CONSUMER, Role.QUERY, Role.KEY)
    mask(twin, consumers)
    steps(model, optimizer, x, 1)
    steps(twin, its, x, 1, consumers)
    equal_survivors(model, optimizer, twin, its, gone, graph, atol=max(1e-8, sensitivity(twin, x)))
    again = removals(smaller, Random(str(genes)))[0]
    expected = paths(masked(model, smaller, again), x)
    prune_channels(model, smaller, again, optimizers=[optimizer])
    assert difference(expected, paths(copy.deepcopy(model), x)) < max(TIGHT, sensitivity(model, x))
    steps(model, optimizer, x, 1)
    return len(graph.groups)


def check_rollback(genes: list[Gene]) -> int:
    model, x = network(genes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps(model, optimizer, x, 2)
    graph = traced(model, x, genes)
    random = Random(str(genes))
    remove = removals(graph, random)[-1]
    if not remove:
        return 0
    twin, its = copy.deepcopy((model, optimizer))
    with faults(None) as calls:
        prune_channels(twin, graph, remove, optimizers=[its])
    before = snapshot(model, [optimizer])
    with faults(random.randrange(calls[0])), pytest.raises(Injected):
        prune_channels(model, graph, remove, optimizers=[optimizer])
    assert snapshot(model, [optimizer]) == before
    steps(model, optimizer, x, 1)
    return len(graph.groups)


CHECKS: dict[str, Check] = {"exact": check_exact, "twin": check_twin, "rollback": check_rollback}


@pytest.mark.slow
def test_a_traced_random_network_is_never_wrong() -> None:
    for_random_networks(check_exact)


@pytest.mark.slow
def test_pruning_a_random_network_in_training_equals_masking_it() -> None:
    for_random_networks(check_twin)


@pytest.mark.slow
def test_an_error_in_the_middle_leaves_a_random_network_as_it_was() -> None:
    for_random_networks(check_rollback)


@pytest.mark.slow
def test_most_random_networks_can_be_pruned() -> None:
    drawn = [network(random_nets.random_genes(Random(seed))) for seed in range(20)]
    assert sum(bool(trace_channels(model, x).groups) for model, x in drawn) > 12


def for_random_networks(check: Check) -> None:
    gene = st.tuples(*[st.integers(0, 255)] * random_nets.GENE)

    @hypothesis.settings(max_examples=COUNT, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.lists(gene, min_size=3, max_size=12))
    def body(genes: list[Gene]) -> None:
        hypothesis.note(random_nets.source_of(genes))
        check(genes)

    body()


def every_layer_has_its_reason(graph: ChannelGraph) -> None:
    for layer, axis in graph.layers.items():
        carried = {int(i) for g in graph.groups.values() for s in g.slices if s.axis == axis for i in s.index.flatten()}
        assert carried == set(range(graph.width(axis))) or graph.frozen.get(layer), f"{layer} has no reason"


def removals(graph: ChannelGraph, random: Random) -> list[dict[str, Tensor]]:
    """A quarter and a half of every group, all but one channel, and of every group as many as it comes."""
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    uneven = {}
    for name, group in graph.groups.items():
        order = torch.randperm(group.size, generator=generator)
        uneven[name] = order[: random.randrange(group.size)].sort().values
    return [*(graph.sample(fraction, generator) for fraction in (0.25, 0.5, 1.0)), graph.normalize(uneven)]


def listed(remove: Remove) -> dict[str, list[int]]:
    return {name: [int(i) for i in index] for name, index in remove.items()}


def paths(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of evaluation, then of training; batch norm's statistics move."""
    evaluated = outputs(model, x)
    with torch.no_grad():
        return evaluated + list(model.train()(x))


def sensitivity(model: nn.Module, x: Tensor) -> float:
    """What the last digits of the weights make of the outputs: some networks are chaotic."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for p in changed.parameters():
        p.data.mul_(1 + 1e-15 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return min(100 * difference(paths(copy.deepcopy(model), x), paths(changed, x)), LOOSE)


def steps(
    model: nn.Module, optimizer: Optimizer, x: Tensor, count: int, consumers: dict[str, Any] | None = None
) -> None:
    """Training steps; what ``consumers`` names stays at zero."""
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        torch.stack([out.square().mean() for out in model(x)]).sum().backward()
        for name, gone in (consumers or {}).items():
            if (grad := model.get_parameter(name).grad) is not None:
                zero(grad, gone)
        optimizer.step()
        mask(model, consumers or {})


def mask(model: nn.Module, consumers: dict[str, Any]) -> None:
    for name, gone in consumers.items():
        zero(model.get_parameter(name).detach(), gone)


def equal_survivors(
    model: nn.Module,
    optimizer: Optimizer,
    twin: nn.Module,
    its: Optimizer,
    gone: dict[str, Any],
    graph: ChannelGraph,
    atol: float,
) -> None:
    """Tensors and optimizer state are the dense twin's without what is gone.

    Up to ``atol`` of the largest entry of all tensors of a kind: the gradient of a bias before a batch norm is
    nothing but the rounding noise of the others.
    """
    found, expected = named_tensors(model), named_tensors(twin)
    kinds = {"": ({n: found[n] for n in expected}, {n: without(t, gone.get(n, {})) for n, t in expected.items()})}
    mine = named_state(model, [optimizer])
    for (_, name, key), value in named_state(twin, [its]).items():
        here, there = kinds.setdefault(key, ({}, {}))
        here[name], there[name] = mine[0, name, key], without(value, gone.get(name, {}), graph.dense[name])
    for kind, (here, there) in kinds.items():
        scale = max(float(t.abs().max()) for t in there.values()) if atol else 0.0
        torch.testing.assert_close(here, there, rtol=0, atol=atol * scale, msg=lambda m, k=kind: f"{k}: {m}")


class Injected(BaseException):
    """Not even an Exception, as KeyboardInterrupt is not."""


@contextmanager
def faults(at: int | None) -> Iterator[list[int]]:
    """Raise at one of the calls that a commit writes with; counts them."""
    calls = [0]

    def counted(original: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            fires = calls[0] == at
            calls[0] += 1
            result = original(*args, **kwargs) if after or not fires else None
            if fires:
                raise Injected
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "set_", counted(Tensor.set_, after=False))
        for name in ("set_storage", "set_items", "clear", "set_attribute", "follow_shapes"):
            patch.setattr(Transaction, name, counted(getattr(Transaction, name), after=True))
        yield calls


def verdict(check: Check, genes: list[Gene]) -> tuple[str, str]:
    """``right``, ``frozen``, ``wrong`` or ``raised``, and what it says."""
    try:
        return ("right" if check(genes) else "frozen"), ""
    except AssertionError as error:
        return "wrong", str(error).partition("\n")[0] or "an assertion"
    except Exception as error:
        return "raised", f"{type(error).__name__}: {str(error)[:300]}"


def smallest(check: Check, genes: list[Gene], kind: str) -> list[Gene]:
    """The simplest program that fails in the same way."""
    while True:
        found = next((g for g in random_nets.smaller(genes) if verdict(check, g)[0] == kind), None)
        if found is None:
            return genes
        genes = found


def campaign(names: list[str], count: int, seed: int, first: int) -> None:
    """Many networks; prints the counts, and every failure minimised."""
    for name in names:
        started, kinds = time.monotonic(), Counter[str]()
        for i in range(first, first + count):
            genes = random_nets.random_genes(Random(f"{seed} {i}"))
            kind, message = verdict(CHECKS[name], genes)
            kinds[kind] += 1
            if kind in ("wrong", "raised"):
                least = smallest(CHECKS[name], genes, kind)
                print(f"{name} {i} {kind}: {message}\n  now {verdict(CHECKS[name], least)[1]}\n  {least}", flush=True)
                print(random_nets.source_of(least), flush=True)
        each = (time.monotonic() - started) / count
        print(f"{name}: {count} networks, {dict(kinds)}, {each:.3f} s each (failures are minimised meanwhile)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first network, to repeat one")
    parser.add_argument("--check", choices=CHECKS, nargs="*", default=list(CHECKS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    campaign(given.check, given.count, given.seed, given.first)
