"""Which options of a trace may free what stays, by the reasons for which it stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from lightning_taylor.trace.reasons import Why

__all__ = ["options_that_may_free"]

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
