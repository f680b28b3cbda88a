"""What the writers share: spans of the header, and the parts of a cell's text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from medvlp.benchmark.tables.model import Cell, Table

_BREAKS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]+")


def one_line(text: str) -> str:
    """A text without anything that ends a line or cannot be written, such as a title of two lines."""
    return _BREAKS.sub(" ", text)


@dataclass(frozen=True)
class Span:
    """A label of the header over neighbouring columns.

    Attributes:
        label: what it says.
        start: its first column, from 0.
        width: how many columns.
    """

    label: str
    start: int
    width: int


def header(table: Table) -> list[list[Span]]:
    """The lines of a table's header, outermost first; equal neighbours under one label are one span."""
    lines = []
    for level in range(len(table.columns[0].labels) if table.columns else 0):
        spans, start = [], 0
        # equal labels join only under the same labels above; the innermost line names each column
        innermost = level == len(table.columns[0].labels) - 1
        keys = [(*c.labels[: level + 1], i if innermost else None) for i, c in enumerate(table.columns)]
        for _, same in groupby(range(len(keys)), key=lambda i: keys[i]):
            width = len(list(same))
            spans.append(Span(table.columns[start].labels[level], start, width))
            start += width
        lines.append(spans)
    return lines


@dataclass(frozen=True)
class CellText:
    """The parts of a cell's text, any of them empty.

    Attributes:
        main: the value or the mark.
        spread: ``± 1.7 [63.1, 67.9]``.
        paper: the paper's value, to stand beside in parentheses.
        marks: letters of the flags that concern the paper's value.
    """

    main: str
    spread: str
    paper: str
    marks: str


def text_of(table: Table, cell: Cell) -> CellText:
    """The parts of a cell's text.

    In a table of reported numbers the paper's value is the main one. A mark that stands for ours and for the paper's is
    printed once.
    """
    marks = table.marks(cell)
    paper = cell.reported
    if table.reported_only:
        if paper is None:
            return CellText(cell.status, "", "", marks)
        return CellText(paper.printed, f"± {paper.std}" if paper.std else "", "", marks)
    beside = "" if paper is None or (cell.value is None and cell.status == paper.printed) else paper.text
    spread = " ".join(part for part in (f"± {cell.std_text}" if cell.std_text else "", cell.interval_text) if part)
    return CellText(cell.mean_text, spread if cell.value is not None else "", beside, marks)


def sources(table: Table) -> Iterator[tuple[str, str, Cell]]:
    """The cells with result rows: their anchor, what they are, and themselves."""
    for b, r, c, cell in table.cells():
        if cell.jobs:
            block = table.blocks[b]
            name = ", ".join(
                part for part in (block.title, block.rows[r].label, " ".join(table.columns[c].labels)) if part
            )
            yield table.anchor(b, r, c), name, cell


def source_of(table: Table, cell: Cell) -> str:
    """Where a cell's result rows are: file, lines and jobs."""
    lines = f", line{'s' if len(cell.lines) > 1 else ''} {', '.join(map(str, cell.lines))}" if cell.lines else ""
    return f"{table.source or 'results'}{lines}; {'jobs' if len(cell.jobs) > 1 else 'job'} {', '.join(cell.jobs)}"
