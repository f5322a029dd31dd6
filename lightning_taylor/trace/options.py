"""What a user may choose where channels can go in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints

__all__ = [
    "AttentionHeads",
    "ConvGroups",
    "TraceChoices",
    "TraceOptions",
    "as_patterns",
    "kinds_of_choices",
]

ConvGroups = Literal["auto", "whole", "spread"]
"""What a grouped convolution loses: see ``trace_channels``."""

AttentionHeads = Literal["whole", "spread"]
"""What an attention loses: see ``trace_channels``."""


class TraceChoices(TypedDict, total=False):
    """The settings of a trace as keywords; each means what it means for ``trace_channels``."""

    allow_inexact_norms: bool
    conv_groups: ConvGroups
    attention_heads: AttentionHeads
    scope: str | Sequence[str]


@dataclass(frozen=True)
class TraceOptions:
    """The settings of a trace that decide what its groups are: ``TraceChoices`` with its defaults.

    Raises:
        ValueError: for a value that is none of those that a choice has.
    """

    allow_inexact_norms: bool = False
    conv_groups: ConvGroups = "auto"
    attention_heads: AttentionHeads = "whole"
    scope: tuple[str, ...] = ()
    """Name patterns of the modules that may lose channels and that count; empty for the whole network."""

    @classmethod
    def of(cls, owner: object, **others: Any) -> TraceOptions:
        """The settings of these names that an object has, but for some others."""
        return cls(**{field.name: getattr(owner, field.name) for field in fields(cls)} | others)

    def __post_init__(self) -> None:
        for name, kind in kinds_of_choices().items():
            value = getattr(self, name)
            if kind is not bool and value not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(kind)))}, got {value!r}")


def kinds_of_choices() -> dict[str, Any]:
    """Return the settings that are a switch or one of a few words: name -> ``bool`` or a ``Literal``.

    Example:
        >>> kinds_of_choices()["conv_groups"]
        typing.Literal['auto', 'whole', 'spread']
    """
    hints = get_type_hints(TraceChoices)
    return {name: kind for name, kind in hints.items() if kind is bool or get_origin(kind) is Literal}


def as_patterns(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name pattern, or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)
