"""Tables as comma-separated values: one line per cell, for other programs."""

import csv
from collections.abc import Iterable
from io import StringIO

from medvlp.benchmark.tables.model import Cell, Table
from medvlp.benchmark.tables.writing import one_line, text_of

FIELDS = (
    *("table", "block", "row", "method", "column", "metric", "fraction"),
    *(
        "value",
        "std",
        "low",
        "high",
        "runs",
        "best",
        "paper",
        "paper_std",
        "flags",
        "phantom",
        "source",
        "lines",
        "jobs",
        "caption",
    ),
)
"""Header of the file. Numbers are as printed (per cent where the table is); in place of a value "-", "/" or "?"."""


def csv_text(tables: Iterable[Table]) -> str:
    """The cells of tables, one line each under one header.

    In a table of reported numbers ``value`` is empty and ``paper`` holds them.
    """
    out = StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for b, r, c, cell in table.cells():
            writer.writerow(_line(table, b, r, c, cell))
    return out.getvalue()


def _text(text: str) -> str:
    """Text that a spreadsheet shows and does not compute."""
    text = one_line(text)
    return f"'{text}" if text.lstrip().startswith(tuple("=+-@＝＋－＠")) else text


def _line(table: Table, b: int, r: int, c: int, cell: Cell) -> dict[str, object]:
    block, column = table.blocks[b], table.columns[c]
    row = block.rows[r]
    paper = cell.reported
    known = cell.low is not None and cell.high is not None
    low, high = cell.interval_text.strip("[]").split(", ") if known else ("", "")
    return {
        "table": _text(table.name),
        "block": _text(block.title),
        "row": _text(row.label),
        "method": _text(row.method or ""),
        "column": _text(" / ".join(column.labels)),
        "metric": _text(column.metric),
        "fraction": "" if column.fraction is None else f"{column.fraction:g}",
        "value": "" if table.reported_only else text_of(table, cell).main,
        "std": cell.std_text,
        "low": low,
        "high": high,
        "runs": cell.runs or "",
        "best": int(cell.best),
        "paper": paper.printed if paper else "",
        "paper_std": (paper.std or "") if paper else "",
        "flags": _text(" | ".join(paper.flags) if paper else ""),
        "phantom": int(table.phantom),
        "source": _text(table.source if cell.jobs else ""),
        "lines": " ".join(map(str, cell.lines)),
        "jobs": _text(" ".join(cell.jobs)),
        "caption": _text(f"{table.title}. {table.caption}."),
    }
