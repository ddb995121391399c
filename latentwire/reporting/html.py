"""Pages as single HTML files: sortable tables, all text escaped, nothing loaded from elsewhere."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Spread:
    """A number and the range around it; none where it cannot be estimated."""

    value: float | None
    range: tuple[float, float] | None


Cell = str | int | float | bool | Spread | None
LONG_TABLE = 40
"""Rows from which on a table has a field to search it."""


@dataclass(frozen=True)
class Table:
    """A table with a heading per column; a missing number is shown as a dash."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def html_page(
    title: str,
    paragraphs: Iterable[str],
    tables: Iterable[Table] = (),
    drawings: Iterable[str] = (),
    body: str = "",
    script: str = "",
) -> str:
    """A page of drawings, paragraphs and tables; a click on a heading sorts by it.

    Args:
        paragraphs: plain text, below the drawings.
        drawings: SVG documents, from a source that is trusted.
        body: HTML at the end, in which all text is escaped already.
        script: JavaScript that brings it to life.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        # Without the XML declaration, which has no place within HTML.
        *(f"<figure>{drawing[drawing.index('<svg') :]}</figure>" for drawing in drawings),
        *(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs),
        *map(_table, tables),
        body,
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + f"\n<script>{_SCRIPT}{script}</script>\n</body>\n</html>\n"
    )


def as_csv(table: Table) -> str:
    """The same table for programs; a range takes two columns of its own."""
    spread = {
        column
        for row in table.rows
        for column, cell in zip(table.columns, row, strict=True)
        if isinstance(cell, Spread)
    }
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            name
            for column in table.columns
            for name in (
                [column, f"{column} low", f"{column} high"] if column in spread else [column]
            )
        ]
    )
    for row in table.rows:
        cells: list[object] = []
        for column, cell in zip(table.columns, row, strict=True):
            if column not in spread:
                cells.append(cell)
            elif isinstance(cell, Spread):
                cells += [cell.value, *(cell.range or (None, None))]
            else:
                cells += [cell, None, None]
        writer.writerow(cells)
    return buffer.getvalue()


def _table(table: Table) -> str:
    header = "".join(
        f'<th scope="col"><button type="button">{escape(column)}</button></th>'
        for column in table.columns
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    search = '<input type="search" class="rows" placeholder="Search these rows">\n'
    return (
        (search if len(table.rows) >= LONG_TABLE else "")
        + f'<div class="wide"><table>\n<caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _cell(cell: Cell) -> str:
    value, around = (cell.value, cell.range) if isinstance(cell, Spread) else (cell, None)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return '<td class="number">–</td>'
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int | float):
        shown = _number(value)
        if around:
            shown += f' <span class="range">{_number(around[0])} – {_number(around[1])}</span>'
        return f'<td class="number" data-value="{value!r}">{shown}</td>'
    return f"<td>{escape(value)}</td>"


def _number(value: float) -> str:
    size = abs(value)
    if value == int(value):
        return f"{int(value):,}"
    if size < 0.001:
        return f"{value:.2g}"
    return f"{value:,.{3 if size < 1 else 2 if size < 10 else 1}f}"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
p { max-width: 60rem; margin: .5rem 0; }
figure { margin: 1rem 0; }
figure svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1.2rem 0; width: max-content; }
caption { text-align: left; padding-bottom: .4rem; color: #555; }
th, td { max-width: 30rem; padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072B2; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.range { color: #666; font-size: .85em; }
tbody tr:hover { background: #f3f6fa; }
@media print { input, select { display: none; } .wide { overflow-x: visible; } }
"""

_SCRIPT = """
for (const heading of document.querySelectorAll("th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = row => {
      const cell = row.children[heading.cellIndex];
      if ("value" in cell.dataset) return Number(cell.dataset.value);
      return cell.className === "number" ? null : cell.textContent;
    };
    const compare = (a, b) => typeof a === "number" && typeof b === "number"
      ? a - b : String(a).localeCompare(String(b));
    // What is missing stands last either way.
    const order = (a, b) => a === null || b === null
      ? (a === null) - (b === null) : (ascending ? 1 : -1) * compare(a, b);
    const body = heading.closest("table").tBodies[0];
    body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  });
}
for (const field of document.querySelectorAll("input.rows")) {
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\\s+/);
    for (const row of field.nextElementSibling.querySelectorAll("tbody tr")) {
      const text = [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}
"""
