"""A hook of ours does nothing on a copy of its module, however that is made."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_taylor.utilities.hooks import FunctionHook, InputHook, with_input

SEEN: list[torch.Tensor] = []


class Doubling(InputHook):
    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        x = self.input_of(args, kwargs)
        if x is None:
            return None
        SEEN.append(x)
        return with_input(args, kwargs, x * 2)


COPIES: tuple[Callable[[nn.Module], nn.Module], ...] = (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)))


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
def test_a_hook_is_inert_on_a_copy(copied: Callable[[nn.Module], nn.Module]) -> None:
    SEEN.clear()
    layer, x = nn.Linear(2, 2, bias=False), torch.rand(3, 2)
    plain = layer(x)
    layer.register_forward_pre_hook(Doubling(layer), with_kwargs=True)
    layer.register_forward_hook(FunctionHook(lambda *_: SEEN.append(x)))
    torch.testing.assert_close(layer(x), 2 * plain)
    torch.testing.assert_close(layer(input=x), 2 * plain)
    assert len(SEEN) == 4
    torch.testing.assert_close(copied(layer)(x), plain)
    assert len(SEEN) == 4


def test_an_input_hook_leaves_paused_passes_and_those_without_gradients_alone() -> None:
    SEEN.clear()
    layer, x = nn.Linear(2, 2, bias=False), torch.rand(3, 2)
    hook = Doubling(layer)
    layer.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        layer(x)
    hook.paused = True
    layer(x)
    assert not SEEN
