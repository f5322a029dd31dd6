"""What stays, for which reasons, and which options of a trace may free it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from lightning_taylor.trace.reasons import Why

__all__ = ["in_words", "options_that_may_free"]

_NAMES, _REASONS = 3, 8

_OPTIONS: Mapping[Why, tuple[str, object]] = {
    Why.STATISTICS: ("allow_inexact_norms", True),
    Why.SCALES_NORM: ("allow_inexact_norms", True),
    Why.ATTENTION_WIDTH: ("attention_heads", "spread"),
    Why.CONTRACTED: ("attention_heads", "spread"),
    Why.UNEQUAL_GROUPS: ("conv_groups", "spread"),
}
"""Reason -> the option of ``TraceOptions`` that its remedy names, and the value that may help."""


def options_that_may_free(reasons: Iterable[str]) -> list[tuple[str, object]]:
    """List the options that reasons of ``ChannelGraph.frozen`` name, with their values, the most frequent first.

    Whether one helps only another trace can tell: what stays for one reason may have to stay for a second one, too.

    Example:
        >>> options_that_may_free([Why.OUTPUT(), Why.STATISTICS("layer_norm in norm"), Why.STATISTICS("")])
        [('allow_inexact_norms', True)]
    """
    named = Counter(option for text in reasons for why, option in _OPTIONS.items() if why.is_said_in(text))
    return [option for option, _ in named.most_common()]


def in_words(reasons: Mapping[str, str]) -> str:
    """Write each reason once, behind a few of the names that it holds, the most frequent first.

    Example:
        >>> in_words({"a": "reaches the output", "b": "why", "c": "why", "d": "why", "e": "why"})
        'b, c, d and 1 more: why; a: reaches the output'
    """
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    ranked = sorted(names.items(), key=lambda item: -len(item[1]))
    more = [f" and {len(held) - _NAMES} more" if len(held) > _NAMES else "" for _, held in ranked]
    said = [f"{', '.join(held[:_NAMES])}{tail}: {reason}" for (reason, held), tail in zip(ranked, more, strict=True)]
    rest = [f"and {len(said) - _REASONS} more reasons"] if len(said) > _REASONS else []
    return "; ".join(said[:_REASONS] + rest)
