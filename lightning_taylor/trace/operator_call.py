"""One call of an operator as a dispatch mode sees it, without what the trace knows of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from lightning_taylor.trace.source_line import running_line
from lightning_taylor.utilities.calls import tensors_in

__all__ = [
    "OperatorCall",
    "operator_name",
    "qualified_name",
]


@dataclass(frozen=True, eq=False)
class OperatorCall:
    """An operator, its arguments by name, what it returned, and where it ran.

    Attributes:
        func: the overload, such as ``torch.ops.aten.relu.default``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: what it returned.
        module: qualified name of the innermost module that ran it.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str

    @property
    def name(self) -> str:
        """The operator without namespace, overload and in-place underscore: ``relu`` for ``aten::relu_``."""
        return operator_name(self.func)

    @property
    def where(self) -> str:
        """The operator, the module that ran it and the line of the model's code, for reasons in words."""
        return f"{self.name} in {self.module or 'the model itself'}{running_line()}"

    @property
    def place(self) -> tuple[str, str]:
        """The operator and the module, whichever line it is: what stands for all its calls."""
        return self.name, self.module

    @cached_property
    def operands(self) -> list[Tensor]:
        """Every tensor argument, in order."""
        return list(tensors_in((self.args, self.kwargs)))

    def get(self, name: str) -> Any:
        """Return an argument by its schema name, with the schema's default."""
        if name in self.kwargs:
            return self.kwargs[name]
        for value, argument in zip(self.args, self.func._schema.arguments, strict=False):
            if argument.name == name:
                return value
        for argument in self.func._schema.arguments:
            if argument.name == name and argument.has_default_value():
                return argument.default_value
        return None


def operator_name(func: Any) -> str:
    """Return ``relu`` for ``aten::relu_``, ``roi_align`` for ``torchvision::roi_align``."""
    return qualified_name(func._schema.name).split("::")[-1]


def qualified_name(name: str) -> str:
    """Return the name of an operator that a schema gives, without in-place underscore: ``aten::relu``."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
