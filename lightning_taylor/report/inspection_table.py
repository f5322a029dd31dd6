"""An inspection as tables, for a terminal of 80 columns: layers by group, totals, and why layers have to stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_taylor.plan.cost import Cost
from lightning_taylor.plan.target import Target
from lightning_taylor.report.dry_run import InspectedEvent
from lightning_taylor.report.inspection import InspectedLayer, Inspection
from lightning_taylor.report.remedies import remedy_for

__all__ = ["inspection_tables"]

_LEGEND = "width: output channels. +: pruned with the layer above. least: it keeps at least so many. @n: after step n."
_WIDTH = 80  # of a terminal
_MOST = 4  # events that are shown; all of them are in the data


def inspection_tables(inspection: Inspection) -> RenderableType:
    """An inspection as something that ``rich`` can print.

    Layers whose channels go together follow each other, all but the first with a ``+``. Of many events those are
    shown that there is room for, the first and the last one among them.
    """
    pruned = inspection.now != inspection.dense
    name = max((len(layer.layer) for layer in inspection.layers), default=0)
    room = _WIDTH - (name + 4) - (3 + pruned) * 7
    shown = _spread(inspection.events, min(_MOST, max(2, room // 8)))
    parts: list[RenderableType] = []
    if any(layer.groups for layer in inspection.layers):
        parts += [_layers(inspection, shown), Text(_LEGEND)]
    parts += [_totals(inspection, shown), Text(_verdict(inspection))]
    if inspection.rule and inspection.events:
        parts.append(Text(inspection.rule))
    if any(layer.reason for layer in inspection.layers):
        parts.append(_stay(inspection.layers))
    if inspection.unseen:
        parts.append(Text(f"Never run by the example: {', '.join(inspection.unseen)}."))
    return Group(*(part for each in parts for part in (each, Text(""))))


def _layers(inspection: Inspection, shown: Sequence[InspectedEvent]) -> Table:
    pruned = inspection.now != inspection.dense
    names = ["width", *(["now"] if pruned else []), "FLOPs", "least", *(_when(event) for event in shown)]
    table = _table("layer", *names)
    for layer, first in _by_group(inspection.layers):
        now = [str(layer.now)] if pruned else []
        widths = [str(event.widths.get(layer.layer, layer.now)) for event in shown]
        # In a plain string the brackets of a name would be markup.
        name = Text(layer.layer if first else f"+ {layer.layer}")
        table.add_row(name, str(layer.dense), *now, f"{layer.flops:.1%}", str(layer.least), *widths)
    return table


def _by_group(layers: Sequence[InspectedLayer]) -> Iterator[tuple[InspectedLayer, bool]]:
    """The layers that can lose channels, by their first group; with whether they are the group's first."""
    groups: dict[str, list[InspectedLayer]] = defaultdict(list)
    for layer in layers:
        if layer.groups:
            groups[layer.groups[0]].append(layer)
    for members in groups.values():
        yield from ((layer, layer is members[0]) for layer in members)


def _totals(inspection: Inspection, shown: Sequence[InspectedEvent]) -> Table:
    pruned = inspection.now != inspection.dense
    names = ["dense", *(["now"] if pruned else []), "least", *(_when(event) for event in shown)]
    table = _table("total", *names, *(["asked"] if inspection.asked else []))
    for resource, label in (("flops", "FLOPs"), ("params", "parameters"), ("channels", "removable channels")):
        dense = getattr(inspection.dense, resource)
        costs = [*([inspection.now] if pruned else []), inspection.least, *(event.cost for event in shown)]
        shares = [_share(cost, inspection.dense, resource) for cost in costs]
        asked = inspection.asked.get(resource)
        table.add_row(label, _short(dense), *shares, *([f"{asked:.1%}" if asked else ""] if inspection.asked else []))
    return table


def _stay(layers: Sequence[InspectedLayer]) -> Table:
    """Every layer with channels that have to stay, by the reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        if layer.reason:
            by_reason[layer.reason].append(layer.layer)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("layers that stay", overflow="fold")
    table.add_column("because", overflow="fold")
    for reason, names in by_reason.items():
        because, remedy = Text(reason), remedy_for(reason)
        if remedy:
            because.append(f"\nwould help: {remedy}", style="italic")
        table.add_row(Text("\n".join(names)), because)
    return table


def _verdict(inspection: Inspection) -> str:
    count = len(inspection.events)
    events = "1 event" if count == 1 else f"{count} events"
    if not inspection.asked:
        return f"Pruned in {events}." if count else "Not pruned yet."
    asked = ", ".join(f"{name} {fraction:.1%}" for name, fraction in inspection.asked.items())
    if inspection.problem:
        return f"TARGET OUT OF REACH ({asked}): {inspection.problem}."
    measured = Target(**inspection.asked).to_measure
    note = f" What is asked of {' and '.join(measured)} is measured in the fit, not here." if measured else ""
    if not Target(**inspection.asked).exact:
        return f"Target {asked}.{note}"
    if not inspection.met:
        return f"TARGET NOT MET ({asked}) after {events}: the fit ends before, or the schedule does.{note}"
    return f"Target {asked} met after {events}.{note}"


def _spread(events: Sequence[InspectedEvent], most: int) -> list[InspectedEvent]:
    """At most so many events, at least two, the first and the last among them."""
    if len(events) <= most:
        return list(events)
    return [events[round(i * (len(events) - 1) / (most - 1))] for i in range(most)]


def _when(event: InspectedEvent) -> str:
    return "target" if event.step is None else f"@{event.step}"


def _share(cost: Cost, dense: Cost, resource: str) -> str:
    share = getattr(cost, resource) / max(1, getattr(dense, resource))
    return "<0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _short(value: float) -> str:
    """A number with three digits and a unit: 1.23 G."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:,.0f}"
