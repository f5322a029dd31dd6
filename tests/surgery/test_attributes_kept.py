"""What is kept is found wherever a user would put it, and nothing of the frameworks' own."""

from __future__ import annotations

import torch
from torch import nn

from lightning_taylor.surgery.attributes_kept import kept_by


class Plain:
    def __init__(self, **kept: object) -> None:
        vars(self).update(kept)


def test_parts_of_modules_objects_dicts_and_lists_are_looked_into() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    net[0].slow = {"a": {"weight": torch.zeros(3, 2)}}  # type: ignore[assignment]
    net.average = Plain(shadow=[1], of=net)  # type: ignore[assignment]
    names = [name for name, _ in kept_by({"net": net})]
    assert names == ["net.average", "net.average.shadow", "net.average.of", "net.0.in_features",
                     "net.0.out_features", "net.0.slow", "net.0.slow['a']"]  # fmt: skip


def test_a_container_of_tensors_is_one_thing_and_a_circle_ends() -> None:
    holder = Plain(batch=[torch.zeros(1)] * 50)
    holder.me = holder  # type: ignore[attr-defined]
    assert len(list(kept_by({"holder": holder}))) == 4
