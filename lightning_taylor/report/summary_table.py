"""The summary as tables: layers, totals, and what was left alone, for a terminal of 80 columns or a text file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import StringIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_taylor.report.remedies import remedy_for
from lightning_taylor.report.summary import Change, PruningSummary
from lightning_taylor.report.text import baseline_line, latency_line, oracle_line, totals, verdict

__all__ = [
    "render",
    "summary_tables",
]

FLOPS = "FLOPs: 2 per multiply-add, for one example."
_REASON = 150  # characters of a reason; the whole of it is in pruning.json
_NAMES = 3  # of the layers that a reason holds


def summary_tables(summary: PruningSummary, style: box.Box = box.SIMPLE_HEAD) -> RenderableType:
    """The summary as something that ``rich`` can print.

    Layers that lost nothing share one row, and so do those that stayed for the same reason, with what would help.

    Args:
        summary: what to show.
        style: how the tables' lines are drawn.
    """
    parts: list[RenderableType] = [
        _layers(summary, style),
        _totals(summary, style),
        Text(FLOPS),
        Text(verdict(summary)),
    ]
    parts += [Text(line) for line in (baseline_line(summary), latency_line(summary), oracle_line(summary)) if line]
    if summary.frozen:
        parts.append(_reasons("frozen layers", summary.frozen, style))
    if summary.unscored:
        parts.append(_reasons("groups without a score", summary.unscored, style))
    return Group(*(part for shown in parts for part in (shown, Text(""))))


def render(summary: PruningSummary, width: int = 80) -> str:
    """The same as plain text: ASCII lines, no colours, and tables that Markdown understands."""
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as captured:
        console.print(summary_tables(summary, style=box.MARKDOWN))
    lines = "\n".join(line.rstrip() for line in captured.get().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"


def _layers(summary: PruningSummary, style: box.Box) -> Table:
    """One row per layer that lost channels; names are ``Text``, since in a plain string brackets would be markup."""
    table = _table(style, "layer", "channels", "now", "remain")
    changed = [layer for layer in summary.layers if layer.after != layer.before]
    for layer in changed:
        remaining = Change(layer.before, layer.after).remaining
        table.add_row(Text(layer.layer), str(layer.before), str(layer.after), f"{remaining:.0%}")
    unchanged = len(summary.layers) - len(changed)
    if unchanged:
        table.add_row(f"{unchanged} {'other ' if changed else ''}layer{'s' * (unchanged > 1)}", "", "", "100%")
    return table


def _totals(summary: PruningSummary, style: box.Box) -> Table:
    table = _table(
        style,
        "total",
        "dense",
        "pruned",
        "remain",
        "asked",
    )
    for row in totals(summary):
        table.add_row(Text(row.label), row.dense, row.pruned, row.remains, row.asked)
    return table


def _reasons(title: str, reasons: Mapping[str, str], style: box.Box) -> Table:
    """Show how often each reason occurs, the most frequent first, for which layers, and what would help."""
    table = Table(box=style, show_edge=style is box.MARKDOWN)
    table.add_column(title, justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    layers: dict[str, list[str]] = {}
    for layer, reason in reasons.items():
        layers.setdefault(reason, []).append(layer)
    for reason, names in sorted(layers.items(), key=lambda item: -len(item[1])):
        shortened = reason if len(reason) <= _REASON else reason[: _REASON - 3] + "..."
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        help_ = f"\nway out: {remedy}" if (remedy := remedy_for(reason)) else ""
        table.add_row(str(len(names)), Text(f"{shortened}\n{', '.join(names[:_NAMES])}{more}{help_}"))
    return table


def _table(style: box.Box, first: str, *numbers: str) -> Table:
    table = Table(box=style, show_edge=style is box.MARKDOWN)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
