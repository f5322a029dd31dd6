"""One walk for everything that holds tensors: identity keeps structure and types, order is kept, circles end."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import MutableMapping, MutableSequence
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from lightning_taylor.utilities.calls import (
    ForwardCall,
    batch_size,
    cast,
    cast_call,
    few_examples,
    few_of,
    moved,
    tensors_in,
    with_examples,
)
from lightning_taylor.utilities.nested import leaves_in, mapped


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    a: Any


class Thing:
    def __init__(self, a: Any) -> None:
        self.a = a


class Encoding(collections.UserDict):  # type: ignore[type-arg]
    """As Hugging Face's BatchEncoding: also attributes, from the same data."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class Config(MutableSequence[Any]):
    """As OmegaConf's ListConfig: makes its entries when asked, knows its parent, refuses what is no number."""

    def __init__(self, content: Any, parent: Any = None) -> None:
        self._content, self._parent = list(content), parent
        self._self = self

    def __getitem__(self, key: Any) -> Any:
        entry = self._content[key]
        return Config(entry, self) if isinstance(entry, list) else entry

    def __setitem__(self, key: Any, value: Any) -> None:
        self._content[key] = value

    def __delitem__(self, key: Any) -> None:
        raise TypeError("fixed")

    def __len__(self) -> int:
        return len(self._content)

    def insert(self, index: int, value: Any) -> None:
        raise TypeError("fixed")


class Named(MutableMapping[str, Any]):
    """As OmegaConf's DictConfig: takes plain values only."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content, self._root = content, self

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, Tensor):
            raise TypeError("no tensors")
        self._content[key] = value

    def __delitem__(self, key: str) -> None:
        raise TypeError("fixed")

    def __iter__(self) -> Any:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


ONE = [
    lambda v: [v],
    lambda v: (v,),
    lambda v: {"k": v},
    lambda v: collections.OrderedDict(k=v),
    Frozen,
    Slotted,
    Thing,
]
ONE += [lambda v: Encoding({"k": v}), lambda v: collections.deque([v]), lambda v: types.SimpleNamespace(k=v)]
ONE += [lambda v: collections.defaultdict(list, k=v)]
LEAVES = st.one_of(st.integers(), st.none(), st.text(max_size=2), st.builds(lambda: torch.rand(2)))


def grown(inner: Any) -> Any:
    pairs = st.one_of(st.builds(Pair, inner, inner), st.builds(Plain, inner, inner))
    ones = st.builds(lambda make, value: make(value), st.sampled_from(ONE), inner)
    return st.one_of(pairs, ones, st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3))


NESTED = st.recursive(LEAVES, grown, max_leaves=8)


def shown(value: Any) -> Any:
    """The structure with types, and tensors by identity."""
    if isinstance(value, Tensor):
        return id(value)
    if isinstance(value, dict | collections.UserDict):
        return type(value), [(key, shown(v)) for key, v in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        return type(value), [shown(v) for v in value]
    if dataclasses.is_dataclass(value):
        return type(value), [shown(getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, Thing | types.SimpleNamespace):
        return type(value), [(key, shown(v)) for key, v in vars(value).items()]
    return type(value), value


def in_order(value: Any) -> list[int]:
    """Ids of the tensors in the structure, plainly."""
    flat: list[int] = []

    def walk(seen: Any) -> None:
        if isinstance(seen, int) and not isinstance(seen, bool):
            flat.append(seen)
        elif isinstance(seen, tuple | list) and not (isinstance(seen, tuple) and seen and seen[0] in (int, str)):
            for part in seen:
                walk(part)

    walk(shown(value))
    return flat


@pytest.mark.slow
@hypothesis.given(NESTED)
@hypothesis.settings(deadline=None, max_examples=80)
def test_the_identity_keeps_structure_types_and_tensors(value: Any) -> None:
    before = shown(value)
    assert shown(mapped(value, lambda leaf: leaf)) == before == shown(value)


@hypothesis.given(NESTED)
@hypothesis.settings(deadline=None, max_examples=80)
def test_a_change_reaches_every_tensor_once_in_order_and_writes_nowhere(value: Any) -> None:
    before, seen = shown(value), []

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        seen.append(id(leaf))
        return leaf + 1

    other = mapped(value, change)
    assert shown(value) == before
    assert seen == [id(t) for t in tensors_in(value)] == in_order(value)
    old, new = list(tensors_in(value)), list(tensors_in(other))
    assert len(old) == len(new)
    assert all(torch.equal(a + 1, b) for a, b in zip(old, new, strict=True))
    assert [type(leaf) for leaf in leaves_in(value)] == [type(leaf) for leaf in leaves_in(other)]


def circle() -> Any:
    thing = Thing(torch.ones(2))
    thing.me, thing.around = thing, [thing, {"again": thing}]  # type: ignore[attr-defined]
    return thing


def test_circles_end() -> None:
    loop: list[Any] = [torch.ones(2)]
    loop.append(loop)
    for value in (circle(), loop):
        assert len(list(tensors_in(value))) == 1
        assert len(list(tensors_in(mapped(value, lambda leaf: leaf)))) >= 1
        assert batch_size(value) == 2
    many = [Thing(torch.ones(1)) for _ in range(40)]
    for thing in many:
        thing.others = many  # type: ignore[attr-defined]
    assert len(list(tensors_in(many))) == 40
    assert len(list(tensors_in(moved(many, torch.device("cpu"))))) == 40


def test_examples_are_counted_where_the_first_part_leads_back() -> None:
    child, parent = Thing(None), Thing(None)
    child.a, parent.a = parent, [child, torch.ones(3, 2)]
    assert batch_size(child) == batch_size(parent) == 3
    named: dict[str, Any] = {}
    named.update(me=named, x=torch.ones(4, 2))
    assert batch_size(named) == 4


def test_a_graph_is_cut_with_all_that_its_nodes_know_of_each_other() -> None:
    """Nothing of the new graph leads back into the old one."""
    parent, child = Thing(torch.ones(4, 2)), Thing(torch.ones(4, 3))
    parent.children, child.parent = {"one": [child]}, parent  # type: ignore[attr-defined]
    child.siblings = child.__dict__["around"] = [child]  # type: ignore[attr-defined]
    few: Any = few_examples(parent, 4, 2)
    (young,) = few.children["one"]
    assert young.parent is few
    assert young.siblings[0] is young.around[0] is young
    assert {t.shape[0] for t in tensors_in(few)} == {2}
    assert {t.shape[0] for t in tensors_in(parent)} == {4}
    assert child.parent is parent  # type: ignore[attr-defined]


def test_configs_are_read_and_left_as_they_are() -> None:
    shape, nested = Config([1, 3, 224, 224]), Config([[1, 2], [3]])
    assert list(tensors_in(shape)) == []
    assert list(leaves_in(nested)) == [1, 2, 3]
    for value in (shape, Named({"x": Config([1])})):
        assert cast(value, torch.float64) is value
        assert few_examples(value, 4, 1) is value
        assert batch_size(value) == 1
    held = Config([torch.ones(4, 2)])
    assert cast(held, torch.float64)[0].dtype == torch.float64
    assert held[0].dtype == torch.float32
    stubborn = cast(Named({"x": 1, "y": Thing(torch.ones(1))}), torch.float64)
    assert stubborn["y"].a.dtype == torch.float64


BATCHES: dict[str, Any] = {
    "a dataclass": lambda: Plain(torch.ones(8, 3), [torch.ones(8)]),
    "a frozen one": lambda: Frozen(torch.ones(8, 3)),
    "a frozen one with slots": lambda: Slotted({"x": torch.ones(8, 3)}),
    "an object": lambda: Thing((torch.ones(8, 3), "names")),
    "an encoding": lambda: Encoding(x=torch.ones(8, 3)),
    "a named tuple": lambda: Pair(torch.ones(8, 3), torch.ones(8)),
    "images": lambda: [torch.ones(3, 5 + n, 5) for n in range(8)],
    "records": lambda: [{"image": torch.ones(3, 5, 5), "label": torch.tensor(n)} for n in range(8)],
    "record objects": lambda: [Plain(torch.ones(3, 5, 5), torch.ones(n, 4)) for n in range(1, 9)],
    "targets": lambda: {"x": torch.ones(8, 3), "y": [{"boxes": torch.ones(1 + n % 3, 4)} for n in range(8)]},
    "targets in a tuple": lambda: (torch.ones(8, 3), tuple({"boxes": torch.ones(1 + n % 9, 4)} for n in range(8))),
    "sequences": lambda: (torch.ones(8, 3), [torch.ones(2 + n) for n in range(8)]),
}


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_examples_are_counted_cut_and_repeated_in_every_form(make: Any) -> None:
    batch = make()
    assert batch_size(batch) == 8
    for count in (1, 2):
        few = few_examples(batch, 8, count)
        assert type(few) is type(batch)
        assert batch_size(few) == count
    call = ForwardCall("", (batch,), {"more": batch})
    for count in (1, 5, 8, 11):
        (again,) = with_examples([call], count)
        assert type(again.args[0]) is type(batch)
        assert batch_size(again.args[0]) == batch_size(again.kwargs["more"]) == count
    assert {t.dtype for t in tensors_in(cast_call(call, torch.float64).args) if t.is_floating_point()} == {
        torch.float64
    }
    assert batch_size(batch) == 8
    assert all(a is b for a, b in zip(tensors_in(batch), tensors_in(call.args), strict=True))


def test_a_list_of_two_batches_is_no_list_of_two_examples() -> None:
    pair = [torch.ones(8, 3, 20), torch.ones(8, 1, 20)]
    assert batch_size(pair) == 8
    assert [t.shape[0] for t in few_examples(pair, 8, 2)] == [2, 2]
    assert [t.shape[0] for t in with_examples([ForwardCall("", (pair,))], 5)[0].args[0]] == [5, 5]


def test_lists_beside_the_batch_are_cut_to_the_same_examples() -> None:
    for name in ("targets", "sequences", "targets in a tuple"):
        few = few_examples(BATCHES[name](), 8, 2)
        assert len(few["y"] if isinstance(few, dict) else few[1]) == 2


def test_arguments_are_no_list_of_examples() -> None:
    record = Plain(torch.ones(2, 3), torch.tensor(0.1))
    call = ForwardCall("", (record, Plain(torch.ones(2, 3), torch.tensor(0.1))))
    assert len(few_of(call, 2).args) == 2
    assert few_of(call, 2).args[0].a.shape == (1, 3)
    assert len(with_examples([ForwardCall("", (record,))], 4)[0].args) == 1
    sizes = [torch.ones(2, 4, 8, 8), torch.ones(2, 4, 4, 4)]
    assert [t.shape[0] for t in few_examples(sizes, 2, 1)] == [1, 1]


def test_a_number_that_comes_first_counts_no_examples() -> None:
    @dataclasses.dataclass
    class Batch:
        weight: Tensor
        images: Tensor

    weight, images = torch.tensor(1.0), torch.ones(8, 3, 4, 4)
    for batch in ({"weight": weight, "images": images}, (weight, images), [[weight], images], Batch(weight, images)):
        assert batch_size(batch) == 8
