"""Values come back from plain types as they were; what is in a file and nobody knows is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_taylor.utilities.plain import from_plain, stored, to_plain


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: int
    axis: tuple[str, int]
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A field of every kind that is known."""

    points: Mapping[str, tuple[Point, ...]]
    names: frozenset[str]
    color: Color
    order: Literal["first", "last"]
    on: bool
    share: float
    sizes: Sequence[list[int]]
    best: Point | None
    nested: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    note: Any = None


numbers = st.integers(-(2**40), 2**40)
texts = st.text(max_size=4)
points = st.builds(Point, numbers, st.tuples(texts, numbers), st.lists(numbers, max_size=3).map(tuple))
pictures = st.builds(
    Picture,
    points=st.dictionaries(texts, st.lists(points, max_size=2).map(tuple), max_size=2),
    names=st.frozensets(texts, max_size=3),
    color=st.sampled_from(Color),
    order=st.sampled_from(["first", "last"]),
    on=st.booleans(),
    share=st.floats(allow_nan=False),
    sizes=st.lists(st.lists(numbers, max_size=2), max_size=2),
    best=st.none() | points,
    nested=st.dictionaries(texts, st.dictionaries(texts, st.lists(st.floats(allow_nan=False)), max_size=2), max_size=2),
    note=st.none() | st.lists(st.booleans() | texts),
)


def loaded(plain: Any) -> Any:
    """Write a file and read it, as ``torch.load`` reads one that is not trusted."""
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@given(pictures)
def test_a_value_comes_back_from_json_and_from_a_file_of_torch_s(picture: Picture) -> None:
    plain = to_plain(picture)
    assert from_plain(Picture, json.loads(json.dumps(plain))) == picture
    assert from_plain(Picture, loaded(plain)) == picture
    assert to_plain([picture]) == [plain]


@dataclass(frozen=True, eq=False)
class Table:
    wide: Tensor
    narrow: Tensor = field(metadata=stored(lambda t: t.to(torch.int32), lambda t: t.to(torch.int64)))
    anything: Any = None


def test_a_tensor_keeps_its_type_unless_its_field_says_otherwise() -> None:
    index = torch.tensor([[3], [1 << 30]])
    plain = to_plain(Table(index, index))
    assert (plain["wide"].dtype, plain["narrow"].dtype) == (torch.int64, torch.int32)
    table = from_plain(Table, loaded(plain))
    for tensor in (table.wide, table.narrow):
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, index)


def test_what_may_be_anything_stays_as_it_is() -> None:
    state = {0: (1, [2, (3,)]), "t": torch.ones(2)}
    table = from_plain(Table, loaded(to_plain(Table(torch.ones(1), torch.ones(1), state))))
    assert table.anything[0] == (1, [2, (3,)])
    assert torch.equal(table.anything["t"], torch.ones(2))


def test_a_set_is_written_in_order() -> None:
    assert to_plain({"names": frozenset("cab")}) == {"names": ["a", "b", "c"]}


def test_a_field_that_an_older_file_lacks_takes_its_default() -> None:
    assert from_plain(Point, {"x": 1, "axis": ["w", 0]}) == Point(1, ("w", 0), ())


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ({"x": 1, "axis": ["w", 0], "y": 2, "z": 3}, "Point has no y, z"),
        ({"x": 1}, "axis"),
        ({"x": "1", "axis": ["w", 0]}, "Point.x should be int, got str"),
        ({"x": True, "axis": ["w", 0]}, "Point.x should be int, got bool"),
        ({"x": 1, "axis": "w0"}, "Point.axis should be list or tuple, got str"),
        ({"x": 1, "axis": ["w", 0], "shape": 3}, "Point.shape should be list or tuple, got int"),
        ([1, ["w", 0]], "Point should be Mapping, got list"),
        (None, "Point should be Mapping, got NoneType"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place(plain: object, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        from_plain(Point, plain)


@dataclass(frozen=True)
class Chosen:
    color: Color | None = None
    order: Literal["first", "last"] = "first"


@pytest.mark.parametrize("plain", [{"color": "green"}, {"order": "middle"}])
def test_a_text_that_is_not_one_of_the_known_is_refused(plain: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"green|middle"):
        from_plain(Chosen, plain)


def test_what_is_not_plain_is_refused_when_it_is_written() -> None:
    with pytest.raises(TypeError, match="object is not plain"):
        to_plain({"a": [object()]})


@dataclass(frozen=True)
class Unclear:
    size: int | str


def test_a_field_of_several_types_is_refused() -> None:
    with pytest.raises(TypeError, match="of several types"):
        from_plain(Unclear, {"size": 1})
