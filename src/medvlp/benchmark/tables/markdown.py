"""Tables in Markdown, as GitHub and most site generators read it."""

import re

from medvlp.benchmark.tables.model import Cell, Table, letter_of
from medvlp.benchmark.tables.writing import one_line, source_of, sources, text_of

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~])")


def escaped(text: str) -> str:
    """Text that Markdown prints as it is, also within a table."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def markdown(table: Table) -> str:
    """A table with its title, footnotes, and the result rows of each cell.

    Our value is linked to the list of its rows; the paper's follows in parentheses.
    """
    parts = [f"### {escaped(table.title)}\n\n{escaped(table.caption)}.\n", "\n".join(_lines(table)) + "\n"]
    notes = [f"- {escaped(note)}" for note in table.footnotes]
    notes += [f"- <sup>{letter_of(i)}</sup> {escaped(flag)}" for i, flag in enumerate(table.flags)]
    if notes:
        parts.append("\n".join(notes) + "\n")
    rows = [
        f'- <a id="{anchor}"></a>{escaped(f"{name}: {source_of(table, cell)}")}'
        for anchor, name, cell in sources(table)
    ]
    if rows:
        parts.append("<details><summary>Result rows of each cell</summary>\n\n" + "\n".join(rows) + "\n\n</details>\n")
    return "\n".join(parts)


def _lines(table: Table) -> list[str]:
    stubs = [table.row_header, *table.fact_names]
    heads = ["<br>".join(escaped(label) for label in column.labels) for column in table.columns]
    lines = [_line([*map(escaped, stubs), *heads]), "|" + " --- |" * len(stubs) + " ---: |" * len(heads)]
    for b, block in enumerate(table.blocks):
        if block.title:
            lines.append(_line([f"**{escaped(block.title)}**", *[""] * (len(stubs) + len(heads) - 1)]))
        for r, row in enumerate(block.rows):
            cells = [_cell(table, cell, table.anchor(b, r, c)) for c, cell in enumerate(row.cells)]
            lines.append(_line([escaped(row.label), *map(escaped, row.facts), *cells]))
    return lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(table: Table, cell: Cell, anchor: str) -> str:
    text = text_of(table, cell)
    main = f"**{text.main}**" if cell.best else escaped(text.main)
    parts = [f"[{main}](#{anchor})" if cell.jobs else main]
    parts += [escaped(text.spread)] if text.spread else []
    parts += [f"({escaped(text.paper)})"] if text.paper else []
    return " ".join(parts) + (f"<sup>{text.marks}</sup>" if text.marks else "")
