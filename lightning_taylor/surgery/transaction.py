"""Changes to living objects that are made together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Self, final

from torch import Tensor, nn

from lightning_taylor.graph.types import Axis
from lightning_taylor.modules.attributes import attribute_changes
from lightning_taylor.modules.resize import hold

__all__ = [
    "Transaction",
]

_NOTHING = object()


@final
class Transaction:
    """A context whose changes are undone, last first, if its body raises anything at all.

    Undoing puts the very same objects back (storages, gradients, state tensors, attribute values), not copies.
    Leaving the context without an error forgets the old objects, which frees their memory. Run it without
    gradients and outside of inference mode: :meth:`set_storage` writes to leaves.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        while self._undo:
            undo = self._undo.pop()
            if kind is not None:
                undo()

    def set_storage(self, tensor: Tensor, new: Tensor) -> None:
        """Let the living ``tensor`` hold what ``new`` holds, and drop its gradient."""
        old, old_grad = tensor.detach(), tensor.grad
        # The way back is noted before the first change: an exception may come between any two lines.
        self._undo.append(lambda: _restore(tensor, old, old_grad))
        hold(tensor, new)
        tensor.grad = None

    def set_items(self, mapping: MutableMapping[str, Any], new: Mapping[str, Any]) -> None:
        """Replace the values of keys that the mapping has; their order stays."""
        old = {key: mapping[key] for key in new}
        self._undo.append(lambda: mapping.update(old))
        mapping.update(new)

    def add_item(self, mapping: MutableMapping[str, Any], key: str, value: object) -> None:
        """Set a key that the mapping does not have."""
        self._undo.append(lambda: mapping.pop(key, None))
        mapping[key] = value

    def clear(self, mapping: MutableMapping[Any, Any]) -> None:
        """Empty a mapping that stays where it is."""
        old = dict(mapping)
        self._undo.append(lambda: mapping.update(old))
        mapping.clear()

    def set_attribute(self, owner: object, name: str, value: object) -> None:
        """Set one plain attribute, whether the owner has it or not."""
        old = getattr(owner, name, _NOTHING)
        self._undo.append(lambda: delattr(owner, name) if old is _NOTHING else setattr(owner, name, old))
        setattr(owner, name, value)

    def follow_shapes(
        self, module: nn.Module, keep: Mapping[Axis, Tensor], values: Mapping[str, int] | None = None
    ) -> None:
        """Let the module's attributes follow its tensors; see ``graph.attributes``."""
        for name, (_, new) in attribute_changes(module, keep, values or {}).items():
            self.set_attribute(module, name, new)


def _restore(tensor: Tensor, old: Tensor, old_grad: Tensor | None) -> None:
    hold(tensor, old)
    tensor.grad = old_grad
