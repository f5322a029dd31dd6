"""What a case of the bad-input campaign is, and the evidence that it left a model alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One wrong input.

    Attributes:
        name: what is wrong.
        act: does it, to the model that ``model`` built.
        says: a pattern in the error's message; None if it should work.
        model: builds the model whose tensors and hooks must not change.
        also: errors of torch or Lightning that are as good, where the fault is theirs to report.
        changes: whether tensors may change, since the case prunes or trains.
        buffers: whether buffers may, since the user's own first forward pass ran.
    """

    name: str
    act: Callable[[Any], Any]
    says: str | None
    model: Callable[[], nn.Module] | None = None
    also: tuple[type[Exception], ...] = ()
    changes: bool = False
    buffers: bool = False


class Evidence:
    """A model as it was."""

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        if model is not None:
            self.tensors = [(name, t, _value(t)) for name, t in _named(model)]
            self.hooks, self.modes = _hooks(model), [m.training for m in model.modules()]
            self.attributes = {name: set(vars(m)) for name, m in model.named_modules()}
        self.dtype, self.fast = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()

    def changed(self, *, hooks_only: bool, buffers: bool) -> str:
        """What is not as it was; empty if nothing."""
        if torch.get_default_dtype() != self.dtype or torch.backends.mha.get_fastpath_enabled() != self.fast:
            return "global settings of torch changed"
        if self.model is None:
            return ""
        if _hooks(self.model) != self.hooks:
            return f"{_hooks(self.model) - self.hooks} hooks left behind"
        if hooks_only:
            return ""
        now = list(_named(self.model))
        if [id(t) for _, t in now] != [id(t) for _, t, _ in self.tensors]:
            return "other tensor objects"
        for name, tensor, value in self.tensors:
            skipped = buffers and not isinstance(tensor, nn.Parameter)
            if not skipped and not _same(_value(tensor), value):
                return f"{name} changed"
        if [m.training for m in self.model.modules()] != self.modes:
            return "modes changed"
        return ""


def _named(model: nn.Module) -> Any:
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _value(tensor: Tensor) -> Tensor | None:
    lazy = isinstance(tensor, nn.parameter.UninitializedTensorMixin)
    if lazy or tensor.is_meta or tensor.layout is not torch.strided:
        return None
    return tensor.detach().clone()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)))


def _hooks(model: nn.Module) -> int:
    return sum(len(getattr(m, kind, {})) for m in model.modules() for kind in HOOKS)
