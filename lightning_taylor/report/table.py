"""The summary as tables: layers, totals, and what was left alone, for a terminal of 80 columns or a text file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from io import StringIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_taylor.report.summary import Change, PruningSummary

__all__ = ["render", "summary_tables"]

_REASON = 150  # characters of a reason; the whole of it is in pruning.json


def summary_tables(summary: PruningSummary, style: box.Box = box.SIMPLE_HEAD) -> RenderableType:
    """The summary as something that ``rich`` can print.

    Layers that lost nothing share one row. Reasons why layers stayed are counted, not repeated.

    Args:
        summary: what to show.
        style: how the tables' lines are drawn.
    """
    parts: list[RenderableType] = [_layers(summary, style), _totals(summary, style), Text(_verdict(summary))]
    if summary.latency:
        parts.append(Text(f"Latency: {summary.latency.verdict}."))
    if summary.frozen:
        parts.append(_reasons("frozen layers", summary.frozen.values(), style))
    if summary.unscored:
        parts.append(_reasons("groups without a score", summary.unscored.values(), style))
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
    table = _table(style, "total", "dense", "pruned", "remain", "asked")
    asked = {name: f"{fraction:.1%}" for name, fraction in summary.asked.items()}
    for name, label in (("flops", "FLOPs"), ("params", "parameters"), ("channels", "removable channels")):
        change: Change = getattr(summary, name)
        table.add_row(
            label, _short(change.before), _short(change.after), f"{change.remaining:.1%}", asked.get(name, "")
        )
    if "memory" in summary.measured:
        table.add_row("peak memory", "", "", f"{summary.measured['memory']:.1%}", asked.get("memory", ""))
    if summary.latency:
        before, after = summary.latency.dense.median, summary.latency.pruned.median
        remaining = f"{Change(before, after).remaining:.1%}" if summary.latency.conclusive else "unclear"
        times = f"{before * 1e3:.3g} ms", f"{after * 1e3:.3g} ms"
        table.add_row("latency", *times, remaining, asked.get("latency", ""))
    for name, change in summary.metrics.items():
        table.add_row(Text(name), f"{change.before:.4g}", f"{change.after:.4g}", "", "")
    return table


def _reasons(title: str, reasons: Iterable[str], style: box.Box) -> Table:
    """How often each reason occurs, the most frequent first."""
    table = Table(box=style, show_edge=style is box.MARKDOWN)
    table.add_column(title, justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    for reason, count in Counter(reasons).most_common():
        table.add_row(str(count), Text(reason if len(reason) <= _REASON else reason[: _REASON - 3] + "..."))
    return table


def _table(style: box.Box, first: str, *numbers: str) -> Table:
    table = Table(box=style, show_edge=style is box.MARKDOWN)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _verdict(summary: PruningSummary) -> str:
    count = len(summary.events)
    events = "1 event" if count == 1 else f"{count} events"
    if not summary.asked:
        return f"{events}; no target was set."
    got = {name: f"got {fraction:.1%}" for name, fraction in summary.achieved.items()}
    pairs = ", ".join(f"{name} {f:.1%} ({got.get(name, 'not measured')})" for name, f in summary.asked.items())
    outcome = "Target met" if summary.met else "TARGET NOT MET"
    return f"{outcome} after {events}: asked for {pairs}."


def _short(value: float) -> str:
    """A number with four digits and a unit that people read: 1.234 G."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:,.0f}"
