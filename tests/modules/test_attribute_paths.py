"""Numbers deep inside of attributes are found, read and replaced by the path that one would write."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from lightning_taylor.modules.attribute_paths import get_number, numbers_in, replaced
from lightning_taylor.modules.attributes import follow_shapes


class Pair(NamedTuple):
    one: int
    two: int


def keeper() -> Any:
    net: Any = nn.Identity()
    net.width, net.sizes, net.flag, net.share = 8, (4, 5), True, 0.5
    net.info = {"rows": [{"chs": 6, "name": "stem", "kind": "conv"}], "pair": Pair(2, 3), "part": 7}
    net.part, net.data, net._hparams = nn.Linear(9, 9), list(range(1000)), {"width": 8}
    return net


def test_numbers_are_found_with_the_texts_beside_them_and_nothing_of_torchs() -> None:
    found = numbers_in(keeper())
    assert {path: number.value for path, number in found.items()} == {
        "width": 8, "sizes[0]": 4, "sizes[1]": 5, "info['rows'][0]['chs']": 6,
        "info['pair'][0]": 2, "info['pair'][1]": 3, "info['part']": 7,
    }  # fmt: skip
    assert found["info['rows'][0]['chs']"].beside == ("stem", "conv")
    assert all(get_number(keeper(), path) == number.value for path, number in found.items())


def test_a_circle_of_containers_has_an_end() -> None:
    net = keeper()
    net.info["me"] = net.info
    assert numbers_in(net)["info['part']"].value == 7


def test_what_is_replaced_is_a_copy_and_what_is_beside_it_is_shared() -> None:
    info = keeper().info
    other = replaced(replaced(info, "['rows'][0]['chs']", 1), "['pair'][1]", 9)
    assert other == {"rows": [{"chs": 1, "name": "stem", "kind": "conv"}], "pair": Pair(2, 9), "part": 7}
    assert (info["rows"][0]["chs"], info["pair"]) == (6, Pair(2, 3))


def test_attributes_follow_by_their_paths_and_only_what_changes_is_new() -> None:
    net = keeper()
    info = net.info
    changed = follow_shapes(net, values={"sizes[1]": 3, "sizes[0]": 2, "info['rows'][0]['chs']": 6})
    assert changed == {"sizes": ((4, 5), (2, 3))}
    assert net.info is info
    follow_shapes(net, values={"info['rows'][0]['chs']": 5, "info['part']": 4})
    assert (net.info["rows"][0]["chs"], net.info["part"], info["part"]) == (5, 4, 7)
