"""``pruning.html``: the whole report in one file that needs no network, no server and no program but a browser."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from lightning_taylor.report.commands import next_commands
from lightning_taylor.report.figures import figures
from lightning_taylor.report.figures.style import png
from lightning_taylor.report.summary import PruningSummary
from lightning_taylor.report.text import baseline_line, latency_line, oracle_line, shortly, totals, verdict
from lightning_taylor.utilities.atomic import write_file

__all__ = [
    "page",
    "write_page",
]

_FOLDER = files("lightning_taylor.report") / "templates"

_COLUMNS = 20

_PICTURES = {
    "channels": "Output channels of every layer before and after the pruning.",
    "accuracy": "Validation metrics against the FLOPs that remained when they were measured.",
    "timeline": "FLOPs, parameters and channels that remain over the steps, and the seconds of each event.",
    "scores": "Spread of the normalised scores in each group, before the first and before the last event.",
}


def write_page(summary: PruningSummary, path: str | os.PathLike[str]) -> Path:
    """Write ``page(summary)`` to a file, all or nothing: a reader never sees half of it.

    Args:
        summary: what to show.
        path: usually ``pruning.html``; its folder is made if missing, an existing file is replaced.

    Returns:
        The path.
    """
    return write_file(path, page(summary))


def page(summary: PruningSummary) -> str:
    """The report as one HTML document, with its pictures and its data inside.

    The data is what ``pruning.json`` holds, in the element ``<script type="application/json" id="pruning">``. The
    same summary gives the same document. Without matplotlib there are no pictures, and a sentence says why.

    Args:
        summary: what to show; names and reasons may hold any characters.

    Example:
        >>> from lightning_taylor.report import Change
        >>> half = Change(64, 32)
        >>> print(page(PruningSummary({"flops": 0.5}, half, half, half, layers=()))[:15])
        <!doctype html>
    """
    pictures, missing = _pictures(summary)
    return _template().render(
        summary=summary,
        style=Markup((_FOLDER / "page.css").read_text("utf-8")),
        verdict=verdict(summary),
        totals=totals(summary),
        notes=[line for line in (baseline_line(summary), latency_line(summary)) if line],
        conditions=_conditions(summary),
        commands=next_commands(summary),
        short=shortly,
        event_columns=list(dict.fromkeys(name for event in summary.events for name in event)),
        widths=_some(summary.widths),
        rounded=_rounded,
        pictures=pictures,
        missing=missing,
        data=_embedded(summary.to_plain()),
    )


@cache
def _template() -> Template:
    """The page's template; to compile it takes longer than to fill it in."""
    # Everything is escaped unless it is Markup, so that no name of a layer can be taken for HTML.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent="{:.1%}".format, number="{:.4g}".format)
    return environment.from_string((_FOLDER / "page.html").read_text("utf-8"))


def _pictures(summary: PruningSummary) -> tuple[list[tuple[str, str]], str]:
    """Descriptions and data URIs, and why there are none."""
    try:
        drawn = figures(summary)
    except ModuleNotFoundError as error:
        return [], str(error)
    uris = {
        name: "data:image/png;base64," + base64.b64encode(png(figure, dpi=160)).decode()
        for name, figure in drawn.items()
    }
    return [(_PICTURES[name], uri) for name, uri in uris.items()], ""


def _conditions(summary: PruningSummary) -> list[tuple[str, str]]:
    """Where and how it was measured: all that the environment says, sizes aside."""
    rows: list[tuple[str, str]] = []
    for name, value in summary.environment.items():
        if name in ("state_dict_bytes", "peak_bytes"):
            continue
        text = ", ".join(f"{key} {of}" for key, of in value.items()) if isinstance(value, Mapping) else str(value)
        rows.append((name.replace("_", " "), text))
    if summary.oracle:
        rows.append(("scores against the oracle", oracle_line(summary).partition(": ")[2].rstrip(".")))
    if summary.compiled_graphs:
        rows.append(("graphs made by torch.compile", str(summary.compiled_graphs)))
    return rows


def _some(widths: Sequence[Mapping[str, int]]) -> dict[int, Mapping[str, int]]:
    """Number of the event -> the widths after it; of many events about twenty, and the last."""
    every = math.ceil(len(widths) / _COLUMNS) or 1
    return {number: row for number, row in enumerate(widths, 1) if (len(widths) - number) % every == 0}


def _rounded(name: str, value: Any) -> str:
    """A cell of the table of events; measured resources are fractions of the dense model's."""
    if value is None:
        return ""
    if name == "seconds":
        return f"{value:.3g}"
    return f"{value:.1%}" if name in ("latency", "memory") else f"{value:,.0f}"


def _embedded(plain: Mapping[str, Any]) -> Markup:
    """JSON that no HTML parser can take for a tag or the end of the script: escapes that JSON knows as well."""
    text = json.dumps(plain, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
