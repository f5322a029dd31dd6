"""What a user may choose where channels can go in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

__all__ = [
    "AttentionHeads",
    "ConvGroups",
    "TraceOptions",
    "as_patterns",
]

ConvGroups = Literal["auto", "whole", "spread"]
"""What a grouped convolution loses: see ``trace_channels``."""

AttentionHeads = Literal["whole", "spread"]
"""What an attention loses: see ``trace_channels``."""


@dataclass(frozen=True)
class TraceOptions:
    """The settings of a trace that decide what its groups are.

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
        _check("conv_groups", self.conv_groups, ConvGroups)
        _check("attention_heads", self.attention_heads, AttentionHeads)


def as_patterns(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name pattern, or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def _check(name: str, value: object, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(kind)))}, got {value!r}")
