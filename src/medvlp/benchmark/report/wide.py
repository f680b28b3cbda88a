"""Tables of :mod:`medvlp.benchmark.tables` for a page that sorts, filters, and leads to result rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvlp.benchmark.report.rowgroups import anchor_of
from medvlp.benchmark.report.summary import Condition
from medvlp.benchmark.tables import Cell, Table
from medvlp.benchmark.tables.model import Block, letter_of
from medvlp.benchmark.tables.writing import CellText, Span, header, text_of


@dataclass(frozen=True)
class WideCell:
    """A cell as the page prints it.

    Attributes:
        text: its parts.
        best: the best of its column, beyond chance.
        sort: number that its column is sorted by: ours, or else the paper's; None where there is none.
        anchor: where its result rows are on the page; None where it has none.
        condition: what the filters know it by; None where no row of ours stands in its column and block.
        reason: why there is no value.
    """

    text: CellText
    best: bool
    sort: float | None
    anchor: str | None
    condition: Condition | None
    reason: str


@dataclass(frozen=True)
class WideRow:
    """A row: its header, its facts, the method whose results it shows (None: the paper's alone), its cells."""

    label: str
    facts: tuple[str, ...]
    method: str | None
    cells: tuple[WideCell, ...]


@dataclass(frozen=True)
class WideBlock:
    """Rows under a heading; "" for none. They are sorted among themselves."""

    title: str
    rows: tuple[WideRow, ...]


@dataclass(frozen=True)
class WideTable:
    """A table as the page prints it.

    Attributes:
        table: what it is of.
        levels: lines of the header, outermost first.
        blocks: the body.
        flags: letters and sentences on the papers' inconsistencies.
    """

    table: Table
    levels: tuple[tuple[Span, ...], ...]
    blocks: tuple[WideBlock, ...]
    flags: tuple[tuple[str, str], ...]


def wide(table: Table, by_line: Mapping[int, Condition], methods: Mapping[int, str]) -> WideTable:
    """Prepares a table.

    Args:
        table: with our values.
        by_line: line of the results file to what its row was measured on.
        methods: line of the results file to the method of its row.
    """
    return WideTable(
        table=table,
        levels=tuple(tuple(spans) for spans in header(table)),
        blocks=tuple(_block(table, block, by_line, methods) for block in table.blocks),
        flags=tuple((letter_of(number), flag) for number, flag in enumerate(table.flags)),
    )


def _block(table: Table, block: Block, by_line: Mapping[int, Condition], methods: Mapping[int, str]) -> WideBlock:
    columns = zip(*(row.cells for row in block.rows), strict=True)
    # within a block all cells of a column are measured on the same: also those without a row of ours
    known = [_condition(cells, by_line) for cells in columns]
    rows = [
        WideRow(
            row.label,
            row.facts,
            row.method,
            tuple(_cell(table, cell, condition, methods) for cell, condition in zip(row.cells, known, strict=True)),
        )
        for row in block.rows
    ]
    return WideBlock(block.title, tuple(rows))


def _condition(cells: Sequence[Cell], by_line: Mapping[int, Condition]) -> Condition | None:
    return next((by_line[cell.lines[0]] for cell in cells if cell.lines), None)


def _cell(table: Table, cell: Cell, condition: Condition | None, methods: Mapping[int, str]) -> WideCell:
    anchor = anchor_of(methods[cell.lines[0]], condition) if cell.lines and condition else None
    return WideCell(text_of(table, cell), cell.best, _sort(cell), anchor, condition, cell.reason)


def _sort(cell: Cell) -> float | None:
    if cell.value is not None:
        return cell.value * cell.scale
    printed = cell.reported.printed if cell.reported else ""
    try:
        return float(printed)
    except ValueError:
        return None
