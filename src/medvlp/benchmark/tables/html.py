"""A table as a fragment of semantic HTML, for a page that brings its own style."""

import html

from medvlp.benchmark.tables.model import Block, Cell, Table, letter_of
from medvlp.benchmark.tables.writing import header, one_line, source_of, sources, text_of


def escape(text: str) -> str:
    """Text that HTML prints as it is."""
    return html.escape(one_line(text))


def html_fragment(table: Table, rows: bool = True) -> str:
    """A ``<section>`` with the table, its footnotes, and a list of the result rows of each cell.

    Classes: ``benchmark-table`` (the section, with ``data-name`` and ``data-family``), ``spread``, ``paper``, ``best``,
    ``footnotes``, ``rows``. Cells have ``data-sort`` (a number, ours or else the paper's; absent where there is none).
    Our value links to ``#<anchor>``, an item of the list.

    Args:
        table: what to write.
        rows: append the list of result rows; without it the page must hold the anchors
            (:meth:`~medvlp.benchmark.tables.model.Table.anchor`).
    """
    lines = [
        f'<section class="benchmark-table" id="{escape(table.name)}" data-name="{escape(table.name)}" '
        f'data-family="{escape(table.family)}">',
        "<table>",
        f"<caption>{escape(table.title)}. {escape(table.caption)}.</caption>",
        *_head(table),
        *(line for b, block in enumerate(table.blocks) for line in _body(table, block, b)),
        "</table>",
        *_notes(table),
        *(_sources(table) if rows else []),
        "</section>",
    ]
    return "\n".join(lines) + "\n"


def _head(table: Table) -> list[str]:
    levels = header(table)
    lines = ["<thead>"]
    for level, spans in enumerate(levels):
        stubs = (table.row_header, *table.fact_names) if not level else ()
        cells = [f'<th scope="col" rowspan="{len(levels)}">{escape(name)}</th>' for name in stubs]
        for span in spans:
            scope = f'scope="colgroup" colspan="{span.width}"' if span.width > 1 else 'scope="col"'
            cells.append(f"<th {scope}>{escape(span.label)}</th>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return [*lines, "</thead>"]


def _body(table: Table, block: Block, number: int) -> list[str]:
    width = 1 + len(table.fact_names) + len(table.columns)
    lines = ["<tbody>"]
    if block.title:
        lines.append(f'<tr><th scope="rowgroup" colspan="{width}">{escape(block.title)}</th></tr>')
    for r, row in enumerate(block.rows):
        facts = "".join(f"<td>{escape(fact)}</td>" for fact in row.facts)
        cells = "".join(_cell(table, cell, table.anchor(number, r, c)) for c, cell in enumerate(row.cells))
        lines.append(f'<tr><th scope="row">{escape(row.label)}</th>{facts}{cells}</tr>')
    return [*lines, "</tbody>"]


def _cell(table: Table, cell: Cell, anchor: str) -> str:
    text = text_of(table, cell)
    main = f"<strong>{escape(text.main)}</strong>" if cell.best else escape(text.main)
    parts = [f'<a href="#{escape(anchor)}">{main}</a>' if cell.jobs else main]
    parts += [f'<span class="spread">{escape(text.spread)}</span>'] if text.spread else []
    parts += [f'<span class="paper">({escape(text.paper)})</span>'] if text.paper else []
    marks = f"<sup>{text.marks}</sup>" if text.marks else ""
    attributes = (' class="best"' if cell.best else "") + _sort(cell)
    return f"<td{attributes}>{' '.join(parts)}{marks}</td>"


def _sort(cell: Cell) -> str:
    if cell.value is not None:
        return f' data-sort="{cell.value * cell.scale:.6g}"'
    number = cell.reported is not None and any(digit.isdigit() for digit in cell.reported.printed)
    return f' data-sort="{escape(cell.reported.printed)}"' if number and cell.reported else ""


def _notes(table: Table) -> list[str]:
    notes = [escape(note) for note in table.footnotes]
    notes += [f"<sup>{letter_of(i)}</sup> {escape(flag)}" for i, flag in enumerate(table.flags)]
    return ['<ul class="footnotes">', *(f"<li>{note}</li>" for note in notes), "</ul>"] if notes else []


def _sources(table: Table) -> list[str]:
    items = [
        f'<li id="{escape(anchor)}">{escape(name)}: {escape(source_of(table, cell))}</li>'
        for anchor, name, cell in sources(table)
    ]
    if not items:
        return []
    return ['<details class="rows"><summary>Result rows of each cell</summary>', "<ul>", *items, "</ul>", "</details>"]
