"""A short table, as lines for a terminal and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["html_table", "text_table"]

Row = Sequence[object]
_MOST = 40  # rows of a terminal; a notebook can scroll
_WIDEST = 60  # characters of a cell


def text_table(heading: str, columns: Sequence[str], rows: Sequence[Row], most: int = _MOST) -> str:
    """Write a heading and a table; of many rows the first and the last.

    Example:
        >>> print(text_table("Two groups", ("group", "channels"), [("conv1", 64), ("conv2", 128)]))
        Two groups
        group  channels
        conv1        64
        conv2       128
    """
    cells = [[_cell(value) for value in row] for row in rows]
    if left_out := max(0, len(cells) - most):
        cells[most // 2 : most // 2 + left_out] = [[f"... {left_out} more", *[""] * (len(columns) - 1)]]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    # Numbers stand at the right, as the first row has them.
    numbers = [isinstance(value, int | float) for value in rows[0]] if rows else [False] * len(columns)
    lines = [
        "  ".join(cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(line, widths, numbers, strict=True))
        for line in ([*columns], *cells)
    ]
    return "\n".join([heading, *(line.rstrip() for line in lines)])


def html_table(heading: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Write the same as an HTML element, with every row, for ``_repr_html_``.

    Example:
        >>> html_table("One", ("group",), [("<a>",)])
        '<div><p>One</p><table><tr><th>group</th></tr><tr><td>&lt;a&gt;</td></tr></table></div>'
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in row)}</tr>" for row in rows)
    return f"<div><p>{escape(heading)}</p><table><tr>{head}</tr>{body}</table></div>"


def _cell(value: object) -> str:
    text = str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
