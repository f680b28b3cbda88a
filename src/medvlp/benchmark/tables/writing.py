"""Print tables as Markdown, LaTeX, HTML (templates of this folder) and comma-separated values."""

import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medvlp.benchmark.tables.model import Cell, Table, letter_of

_BREAKS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]+")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~])")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: "\\" + sign for sign in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "−": r"$-$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
    }
)
_LATEX_DELIMITERS: dict[str, Any] = {
    **{"block_start_string": "<%", "block_end_string": "%>"},
    **{"variable_start_string": "<<", "variable_end_string": ">>"},
    **{"comment_start_string": "<#", "comment_end_string": "#>"},
}
_ESCAPES: dict[str, Callable[[str], str]] = {
    "html": html.escape,
    "md": lambda text: _MARKDOWN.sub(r"\\\1", text),
    "tex": lambda text: text.translate(_LATEX),
}


def one_line(text: str) -> str:
    """Replace by a space whatever ends a line or cannot be written, such as in a title of two lines."""
    return _BREAKS.sub(" ", text)


@cache
def environment(package: str, form: str = "html") -> Environment:
    """Return the jinja2 environment for the templates of a package.

    Every expression that is not marked safe is put on one line and escaped for ``form``: "html", "md" or "tex".
    """

    def escaped(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(_ESCAPES[form](one_line(str(value))))

    templates = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **(_LATEX_DELIMITERS if form == "tex" else {}),
    )
    templates.globals["text_of"] = text_of
    templates.filters["one_line"] = one_line
    return templates


def _printed(table: Table, form: str, **values: Any) -> str:
    stubs = (table.row_header, *table.fact_names)
    return (
        environment(__package__, form)
        .get_template(f"table.{form}")
        .render(
            table=table,
            stubs=stubs,
            width=len(stubs) + len(table.columns),
            levels=header(table),
            notes=notes_of(table),
            sources=list(_sources(table)),
            **values,
        )
    )


def markdown(table: Table) -> str:
    """Print a table as GitHub and most site generators read it, with links from our values to their result rows."""
    return _printed(table, "md")


def latex(table: Table) -> str:
    """Print a floating table; the result rows of each cell are comments.

    The document needs the packages booktabs, multirow and, for tables of more than six columns, graphicx.
    """
    return _printed(table, "tex")


def html_fragment(table: Table, rows: bool = True) -> str:
    """Print a ``<section>`` for a page that brings its own style.

    Classes: ``benchmark-table`` (the section, with ``data-name`` and ``data-family``), ``spread``, ``paper``, ``best``,
    ``footnotes``, ``rows``. Cells have ``data-sort`` (a number, ours or else the paper's; absent where there is none).
    Our value links to ``#<anchor>`` (:meth:`~medvlp.benchmark.tables.model.Table.anchor`), an item of the list of
    result rows; without ``rows`` the page must hold it.
    """
    return _printed(table, "html", rows=rows)


def csv_text(tables: Iterable[Table]) -> str:
    """Print the cells of tables, one line each under one header, with numbers as printed.

    In a table of reported numbers ``value`` is empty and ``paper`` holds them.
    """
    lines = [_csv_line(table, *position) for table in tables for position in table.cells()]
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def _csv_line(table: Table, b: int, r: int, c: int, cell: Cell) -> dict[str, object]:
    block, column = table.blocks[b], table.columns[c]
    row, paper = block.rows[r], cell.reported
    low, _, high = cell.interval_text.strip("[]").partition(", ")
    return {
        "table": _no_formula(table.name),
        "block": _no_formula(block.title),
        "row": _no_formula(row.label),
        "method": _no_formula(row.method or ""),
        "column": _no_formula(" / ".join(column.labels)),
        "metric": _no_formula(column.metric),
        "fraction": "" if column.fraction is None else f"{column.fraction:g}",
        "value": "" if table.reported_only else text_of(table, cell).main,
        "std": cell.std_text,
        "low": low,
        "high": high,
        "runs": cell.runs or "",
        "best": int(cell.best),
        "paper": paper.printed if paper else "",
        "paper_std": (paper.std or "") if paper else "",
        "flags": _no_formula(" | ".join(paper.flags) if paper else ""),
        "phantom": int(table.phantom),
        "source": _no_formula(table.source if cell.jobs else ""),
        "lines": " ".join(map(str, cell.lines)),
        "jobs": _no_formula(" ".join(cell.jobs)),
        "caption": _no_formula(f"{table.title}. {table.caption}."),
    }


def _no_formula(text: str) -> str:
    """Quote what a spreadsheet would compute."""
    text = one_line(text)
    return f"'{text}" if text.lstrip().startswith(tuple("=+-@＝＋－＠")) else text


@dataclass(frozen=True)
class Span:
    """A label of the header over ``width`` neighbouring columns from ``start`` (from 0) on."""

    label: str
    start: int
    width: int


def header(table: Table) -> list[list[Span]]:
    """Return the lines of a table's header, outermost first; equal neighbours under one label are one span."""
    lines = []
    depth = len(table.columns[0].labels) if table.columns else 0
    for level in range(depth):
        # equal labels join only under the same labels above; the innermost line names each column
        keys = [(*c.labels[: level + 1], i if level == depth - 1 else None) for i, c in enumerate(table.columns)]
        spans = []
        for _, group in groupby(range(len(keys)), key=lambda i: keys[i]):
            columns = list(group)
            spans.append(Span(table.columns[columns[0]].labels[level], columns[0], len(columns)))
        lines.append(spans)
    return lines


@dataclass(frozen=True)
class CellText:
    """The parts of a cell's text, any of them empty.

    ``main`` is the value or the mark, ``spread`` such as ``± 1.7 [63.1, 67.9]``, ``paper`` the paper's value beside it,
    ``marks`` the letters of the flags that concern that.
    """

    main: str
    spread: str
    paper: str
    marks: str


def text_of(table: Table, cell: Cell) -> CellText:
    """Return the parts of a cell's text; in a table of reported numbers the paper's value is the main one.

    A mark that stands for ours and for the paper's is printed once.
    """
    marks, paper = table.marks(cell), cell.reported
    if table.reported_only and paper is not None:
        return CellText(paper.printed, f"± {paper.std}" if paper.std else "", "", marks)
    beside = "" if paper is None or (cell.value is None and cell.status == paper.printed) else paper.text
    std = f"± {cell.std_text}" if cell.std_text else ""
    return CellText(cell.mean_text, " ".join(filter(None, (std, cell.interval_text))), beside, marks)


def notes_of(table: Table) -> list[tuple[str, str]]:
    """Return the sentences below a table, and before those on the papers' inconsistencies their letter."""
    return [*(("", note) for note in table.footnotes), *((letter_of(i), flag) for i, flag in enumerate(table.flags))]


def _sources(table: Table) -> Iterator[tuple[str, str]]:
    """Yield the anchors of cells with result rows, and where those are: file, lines and jobs."""
    for b, r, c, cell in table.cells():
        if cell.jobs:
            block = table.blocks[b]
            name = ", ".join(filter(None, (block.title, block.rows[r].label, " ".join(table.columns[c].labels))))
            numbers = ", ".join(map(str, cell.lines))
            lines = f", line{'s' if len(cell.lines) > 1 else ''} {numbers}" if numbers else ""
            jobs = f"{'jobs' if len(cell.jobs) > 1 else 'job'} {', '.join(cell.jobs)}"
            yield table.anchor(b, r, c), f"{name}: {table.source or 'results'}{lines}; {jobs}"
